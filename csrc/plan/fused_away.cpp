#include "plan/step.h"

namespace resfuse {

namespace {

class FusedAwayStep final : public Step {
  public:
    int stages() const override { return 0; }
    index_t tasks(int, index_t) const override { return 0; }
    void run(int, index_t, const Wave&, void*) const override {}
};

}  // namespace

std::unique_ptr<Step> make_fused_away_step() { return std::make_unique<FusedAwayStep>(); }

}  // namespace resfuse
