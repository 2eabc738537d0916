// A problem of the one-launch layer, and its plan by the kernel's own make_plan.
//
//   PROGRAM TOKENS FEW BLOCKS SEED TOP_K BEGIN EXPERTS HIDDEN INNER IDS_64 [more] < ids
//
// TOKENS: rows of a tile; FEW: of few pairs; BEGIN, EXPERTS: those of this rank.
#pragma once
#include <cstring>

#include "block.h"
#include "sm90/moe/layer/plan.cuh"

using namespace w4afp8::moe::layer;

struct Problem {
  Layer layer{};
  std::vector<int> ids, more;
  std::vector<long long> ids_64;
  int tokens, few;

  Problem(int count, char** words) {
    for (int i = 1; i < count; ++i) more.push_back(std::atoi(words[i]));
    const std::vector<int> n(more.begin(), more.begin() + 10);
    more.erase(more.begin(), more.begin() + 10);
    for (int id; std::scanf("%d", &id) == 1;) ids.push_back(id);
    ids_64.assign(ids.begin(), ids.end());
    tokens = n[0], few = n[1], gridDim.x = n[2];
    dice.seed(n[3]);
    const void* all = n[9] ? static_cast<const void*>(ids_64.data()) : ids.data();
    layer.routing = {all, n[9] != 0, static_cast<int>(ids.size()) / n[4], n[4], n[5], n[6]};
    layer.hidden = n[7], layer.inner = n[8];
    // As launch.cuh and its callers do.
    layer.weight[kGateUp].row_blocks = 2 * layer.inner / kTileRows, layer.weight[kGateUp].groups = layer.hidden / kTileCols;
    layer.weight[kDown].row_blocks = layer.hidden / kTileRows, layer.weight[kDown].groups = layer.inner / kTileCols;
    layer.row_tiles[kGateUp] = layer.inner / (2 * kTileRows);
    layer.row_tiles[kDown] = layer.weight[kDown].row_blocks / kConsumers;
    for (int phase : {kGateUp, kDown}) layer.stages[phase] = layer.weight[phase].groups / kStageGroups;
  }
};

template <class C>
const typename C::Plan& plan_of(const Problem& problem) {
  static typename C::Plan plan, first;  // as the first thread finds it that goes on
  std::memset(&plan, 0x5a, sizeof plan);
  bool left = false;
  run_block(kThreads, [&] {
    make_plan<C>(problem.layer, plan);
    if (!left) std::memcpy(&first, &plan, sizeof plan);
    left = true;
  });
  if (std::memcmp(&first, &plan, sizeof plan) != 0) fail("a thread goes on before the plan is made");
  return plan;
}

// Calls `follow.operator()<Config>` of the kernel that is asked for.
template <class Follow>
void with_kernel(const Problem& problem, Follow&& follow) {
  if (problem.few) {
    follow.template operator()<Config<8, 5, true>>();
  } else if (problem.tokens == 8) {
    follow.template operator()<Config<8, 5>>();
  } else {
    follow.template operator()<Config<16, 5>>();
  }
}
