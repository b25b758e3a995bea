// Finds races: two accesses to the same memory, one of them a write, that nothing orders, so that
// on a GPU they may come in another order than here.
//
// For kernels that were compiled with -fsanitize=thread: the calls that this puts beside every
// access come here, and not to ThreadSanitizer, which tells no more than 256 threads apart.
// Otherwise all below does nothing.
//
// Accesses are ordered between actors: the threads, and what works beside them. Each counts its
// own time, and knows up to which time of each other actor all has happened before. A release
// passes that on, and an acquire takes it over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <vector>

namespace emulator {

struct Block;
struct Thread;

namespace race {

extern bool looks;  // whether a kernel here was compiled so

struct Actor {
  uint32_t number = 0;  // in the cluster
  uint32_t time = 1;
};

using Clock = std::vector<uint32_t>;  // by the actors' numbers: times

// All before a launch has happened, and nothing of what another cluster does.
void begin_launch();
void begin_cluster();
void begin(Block& block);

// One that works beside the threads: "a TMA load".
Actor another(const char* what);

void release(Thread& thread, Clock& to);
void acquire(Thread& thread, const Clock& from);
// All that the actor did has happened, but in the present time and in `left` times before.
void pass(Actor actor, size_t left, Clock& to);
// What all lanes of the running warp know.
Clock known_to_warp();

// By the running thread, and by an actor that it started.
void read(const void* at, size_t bytes, std::source_location here);
void write(const void* at, size_t bytes, std::source_location here);
void read(Actor actor, const Clock& seen, const void* at, size_t bytes, std::source_location here);
void write(Actor actor, const Clock& seen, const void* at, size_t bytes, std::source_location here);

}  // namespace race
}  // namespace emulator
