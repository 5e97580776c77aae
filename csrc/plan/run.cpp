#include "plan/run.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>

#include "machine/threads.h"
#include "memory/aligned.h"
#include "plan/arrivals.h"

namespace resfuse {

namespace {

// Hands out tasks: each thread first works through its own contiguous share, so that a layer finds in its core's cache
// what the layer before left there, then takes what others have not begun. Two sets of counters alternate: the idle
// set is cleared while the other is in use, and the barrier between stages publishes both. While the first thread is
// missing, the second one clears its counter.
class TaskQueue {
  public:
    explicit TaskQueue(int threads) : counters_(static_cast<std::size_t>(threads)) {}

    template <class F>
    void work(int thread, int threads, index_t tasks, std::size_t stage, bool first_is_missing, F run_task) {
        counters_[static_cast<std::size_t>(thread)].next[(stage + 1) % 2].store(0, std::memory_order_relaxed);
        if (first_is_missing && thread == 1) counters_[0].next[(stage + 1) % 2].store(0, std::memory_order_relaxed);
        for (int v = 0; v < threads; ++v) {
            const int victim = (thread + v) % threads;
            const Range share = part(tasks, victim, threads);
            std::atomic<index_t>& next = counters_[static_cast<std::size_t>(victim)].next[stage % 2];
            for (;;) {
                const index_t task = share.begin + next.fetch_add(1, std::memory_order_relaxed);
                if (task >= share.end) break;
                run_task(task);
            }
        }
    }

  private:
    struct alignas(64) Counter {
        std::atomic<index_t> next[2] = {0, 0};
    };
    std::vector<Counter> counters_;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

class Executor {
  public:
    Executor(const Plan& plan, const WeightSet& weights, const std::vector<Tensor>& inputs,
             const std::vector<Tensor>& outputs, std::byte* workspace, std::vector<double>* step_seconds)
        : plan_(plan),
          weights_(weights),
          inputs_(inputs),
          outputs_(outputs),
          workspace_(workspace),
          step_seconds_(step_seconds) {}

    // `arrivals`: null where all threads begin together. The first one may set `stopped` before it comes here.
    void run_thread(int thread, int threads, TaskQueue& queue, Arrivals* arrivals,
                    const std::atomic<bool>& stopped) const {
        const std::size_t first_stage = arrivals && thread == 0 ? arrivals->join() : 0;
        std::size_t stage_number = 0;
        const bool clocked = step_seconds_ != nullptr && thread == 0;
        double start = clocked ? now() : 0.0;
        for_each_stage(thread, [&](std::size_t s, int stage, index_t, index_t tasks, const auto& run_task) {
            if (stage_number < first_stage) {
                ++stage_number;
                return true;
            }
            queue.work(thread, threads, tasks, stage_number++, arrivals != nullptr, run_task);
            if (arrivals) {
                if (arrivals->arrive()) arrivals = nullptr;
            } else {
#pragma omp barrier
            }
            if (!arrivals && stopped.load(std::memory_order_relaxed)) return false;
            if (!clocked || stage + 1 < plan_.steps()[s]->stages()) return true;
            const double end = now();
            (*step_seconds_)[s] += end - start;
            start = end;
            return true;
        });
    }

    // Calls f(step, stage, first image of the wave, tasks, run_task), with what runs one of these tasks, while it
    // returns true.
    template <class F>
    void for_each_stage(int thread, F f) const {
        std::byte* const scratch = workspace_ + plan_.workspace().thread_scratch_offset +
                                   static_cast<std::size_t>(thread) * plan_.workspace().thread_scratch;
        std::vector<Tensor> tensors(plan_.buffers().size());
        for (const Segment& segment : plan_.segments())
            for (index_t begin = 0; begin < plan_.batch(); begin += segment.images) {
                const index_t images = std::min(segment.images, plan_.batch() - begin);
                place_tensors(tensors, begin);
                Wave wave{plan_.program().kernels(), weights_, images, tensors.data(), workspace_, plan_.zeros()};
                for (std::size_t s = segment.first_step; s <= segment.last_step; ++s) {
                    const Step& step = *plan_.steps()[s];
                    wave.shared = workspace_ + plan_.workspace().shared_scratch_offsets[s];
                    for (int stage = 0; stage < step.stages(); ++stage) {
                        const auto run_task = [&](index_t task) { step.run(stage, task, wave, scratch); };
                        if (!f(s, stage, begin, step.tasks(stage, images), run_task)) return;
                    }
                }
            }
    }

  private:
    void place_tensors(std::vector<Tensor>& tensors, index_t first_image) const {
        for (std::size_t b = 0; b < tensors.size(); ++b) {
            const PlannedBuffer& buffer = plan_.buffers()[b];
            Tensor& tensor = tensors[b];
            if (buffer.is_view()) continue;
            if (buffer.external_input >= 0) {
                tensor = inputs_[static_cast<std::size_t>(buffer.external_input)];
            } else if (buffer.external_output >= 0) {
                tensor = outputs_[static_cast<std::size_t>(buffer.external_output)];
            } else {
                tensor = {workspace_ + buffer.offset,
                          buffer.image(),
                          buffer.extent.w * buffer.pixel,
                          buffer.pixel,
                          1,
                          buffer.type};
            }
            if (buffer.is_external() || buffer.whole_batch)
                tensor.data = static_cast<std::byte*>(tensor.at(first_image * tensor.image));
        }
        for (std::size_t b = 0; b < tensors.size(); ++b) {
            const PlannedBuffer& buffer = plan_.buffers()[b];
            if (!buffer.is_view()) continue;
            tensors[b] = tensors[static_cast<std::size_t>(buffer.view_of)];
            tensors[b].data = static_cast<std::byte*>(tensors[b].at(buffer.first_channel));
        }
    }

    const Plan& plan_;
    const WeightSet& weights_;
    const std::vector<Tensor>& inputs_;
    const std::vector<Tensor>& outputs_;
    std::byte* workspace_;
    std::vector<double>* step_seconds_;
};

}  // namespace

bool run(const Plan& plan, const WeightSet& weights, const std::vector<Tensor>& inputs,
         const std::vector<Tensor>& outputs, std::vector<double>* step_seconds,
         const std::function<bool()>& may_go_on) {
    if (step_seconds) step_seconds->assign(plan.steps().size(), 0.0);
    const AlignedBytes workspace(plan.workspace().bytes);
    const Executor executor(plan, weights, inputs, outputs, workspace.data(), step_seconds);
    TaskQueue queue(plan.threads());
    std::atomic<bool> stopped = false;
    const int wanted = usable_threads(plan.threads());
    std::optional<Arrivals> arrivals;
    if (may_go_on && wanted > 1) arrivals.emplace(wanted);
#pragma omp parallel num_threads(wanted)
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        if (thread == 0 && may_go_on) stopped = !may_go_on();
        const FlushDenormals flush;
        executor.run_thread(thread, threads, queue, arrivals && threads == wanted ? &*arrivals : nullptr, stopped);
    }
    return !stopped;
}

std::vector<TaskTime> time_tasks(const Plan& plan, const WeightSet& weights, const std::vector<Tensor>& inputs,
                                 const std::vector<Tensor>& outputs) {
    const AlignedBytes workspace(plan.workspace().bytes);
    const Executor executor(plan, weights, inputs, outputs, workspace.data(), nullptr);
    const FlushDenormals flush;
    std::vector<TaskTime> times;
    for (int thread = 0; thread < plan.threads(); ++thread)
        executor.for_each_stage(thread,
                                [&](std::size_t s, int stage, index_t image, index_t tasks, const auto& run_task) {
                                    const Range share = part(tasks, thread, plan.threads());
                                    for (index_t task = share.begin; task < share.end; ++task) {
                                        const double start = now();
                                        run_task(task);
                                        times.push_back({s, image, stage, task, now() - start});
                                    }
                                    return true;
                                });
    return times;
}

}  // namespace resfuse
