"""Measurement: cases, baselines, timers, roofline, report. ``python -m shiftmlp bench`` runs it."""
