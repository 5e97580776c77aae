// The one workspace: scratch memory that runs borrow and give back, so that steady state allocates nothing.
#pragma once

#include <mutex>
#include <vector>

#include "engine/aligned.h"

namespace resfuse {

class WorkspacePool {
  public:
    // A block of at least `floats` floats for as long as the lease lives. Concurrent runs get blocks of their own.
    class Lease {
      public:
        Lease(WorkspacePool& pool, std::size_t floats) : pool_(pool), block_(pool.take(floats)) {}
        ~Lease() { pool_.give_back(std::move(block_)); }
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        float* data() const { return block_.data(); }

      private:
        WorkspacePool& pool_;
        AlignedFloats block_;
    };

    static WorkspacePool& global();
    std::size_t bytes() const;

  private:
    AlignedFloats take(std::size_t floats);
    void give_back(AlignedFloats block);

    mutable std::mutex mutex_;
    std::vector<AlignedFloats> free_;
};

}  // namespace resfuse
