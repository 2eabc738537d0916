// Follows plan.cuh on the CPU: prints a layer's plan, and every segment of every block.
//
//   layer_walk (as layer.h says) ORDER LATE STOP < ids
//
// ORDER 0: block after block, so the first one is handed out whatever is; 1: whoever the dice say.  LATE: a block that
// does nothing before all others have ended, or -1.  STOP: so many tiles are handed out, from then on nobody asks; -1:
// all of them.
//
// Lines: `plan active runs`; of an active expert `slot expert rows first_row block8 run_end`; of every expert
// `expert row block8`; `id expert` of every pair; and, in the order of the walks, `segment block phase run row_tile
// first_stage stages weight_stage first_row block8 tokens peers owner shared ticket`, where a tile that was handed out
// has its number among those, others -1.
#include "layer.h"

template <class C>
void print(const Layer& p, const typename C::Plan& plan) {
  std::printf("plan %d %d\n", plan.active, plan.runs);
  for (int i = 0; i < plan.active; ++i) {
    std::printf("slot %d %d %d %d %d\n", plan.expert[i], plan.rows[i], plan.first_row[i], plan.block8[i], plan.run_end[i]);
  }
  for (int e = 0; e < p.routing.experts; ++e) std::printf("expert %d %d\n", plan.expert_row[e], plan.expert_block8[e]);
  for (int i = 0; i < p.routing.tokens * p.routing.top_k; ++i) std::printf("id %d\n", plan.id[i]);
}

template <class C>
void walk(const Layer& p, const typename C::Plan& plan, int order, int late, uint32_t stop) {
  uint32_t taken = 0;
  std::vector<Walk<C>> walks;
  std::vector<int> left;
  const auto sit_down = [&](int b) { blockIdx.x = b; };
  for (int b = 0; b < gridDim.x; ++b) {
    sit_down(b);
    walks.emplace_back(p, plan, C::kFew ? nullptr : &taken);
    if (b != late) left.push_back(b);
  }
  bool came = late < 0;
  while (!left.empty()) {
    const size_t i = order == 0 ? 0 : dice() % left.size();
    const int b = left[i];
    const uint32_t before = taken;
    sit_down(b);
    Segment s{};
    bool more = walks[b].next(s);
    const bool asked = taken != before;
    if (asked && before >= stop) more = false, taken = before;  // it has not asked
    if (!more) {
      left.erase(left.begin() + i);
      if (left.empty() && !came) left.push_back(late), came = true;
      continue;
    }
    std::printf("segment %d %d %d %d %d %d %d %d %d %d %d %d %d %d\n", b, s.phase, s.run, s.row_tile, s.first_stage,
                s.stages, s.weight_stage, s.first_row, s.block8, s.tokens, s.peers, s.owner, s.shared,
                asked ? static_cast<int>(before) : -1);
  }
}

int main(int count, char** words) {
  const Problem problem(count, words);
  with_kernel(problem, [&]<class C> {
    const typename C::Plan& plan = plan_of<C>(problem);
    print<C>(problem.layer, plan);
    walk<C>(problem.layer, plan, problem.more[0], problem.more[1], static_cast<uint32_t>(problem.more[2]));
  });
}
