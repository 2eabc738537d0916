// Walks schedule.cuh on the CPU: prints every segment of every block for one problem.
//
//   walk CONSUMERS MAX_TOKENS STAGE_GROUPS CLUSTER BLOCKS SPLIT_GROUPS ROWS COLS count of expert 0, 1, ...
//
// One line a segment: block expert row_tile first_row tokens first_group groups first_peer end_peer owner shared last.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "alone.h"
#include "sm90/grouped_gemm/schedule.cuh"

using namespace w4afp8::grouped_gemm;

template <int kCluster>
void walk(const ExpertPlan& plan, const Params& p, int max_tokens, int stage_groups, int blocks) {
  gridDim.x = blocks;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    Walk<kCluster> own(plan, p, max_tokens, stage_groups);
    Segment s;
    while (own.next(s)) {
      std::printf("%d %d %d %d %d %d %d %d %d %d %d %d\n", blockIdx.x, s.expert, s.row_tile, s.first_row, s.tokens,
                  s.first_group, s.groups, s.first_peer, s.end_peer, s.owner, s.shared, s.last);
    }
  }
}

int main(int count, char** words) {
  std::vector<int> n;
  for (int i = 1; i < count; ++i) n.push_back(std::atoi(words[i]));
  const int consumers = n[0], max_tokens = n[1], stage_groups = n[2], cluster = n[3], blocks = n[4];
  Params p{};
  p.split_groups = n[5], p.rows = n[6], p.cols = n[7];
  const int row_tiles = divide_up(p.rows, kTileRows * consumers * cluster);
  ExpertPlan plan{};
  int first = 0;
  for (size_t e = 8; e < n.size(); first += n[e++]) {  // as make_plan leaves it
    if (n[e] == 0) continue;
    plan.expert[plan.active] = static_cast<int>(e) - 8;
    plan.first_row[plan.active] = first;
    plan.rows[plan.active] = n[e];
    plan.tiles += divide_up(n[e], max_tokens) * row_tiles;
    plan.tile_end[plan.active++] = plan.tiles;
  }
  for (int i = 0; i < kSearched; ++i) plan.tile_end[plan.active + i] = INT_MAX;
  if (cluster == 1) walk<1>(plan, p, max_tokens, stage_groups, blocks);
  if (cluster == 2) walk<2>(plan, p, max_tokens, stage_groups, blocks);
}
