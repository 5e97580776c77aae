// Classifies an image file with a model that resfuse.save has written.  classify MODEL IMAGE [THREADS]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <resfuse.hpp>

#include "image.h"

int main(int argc, char** argv) try {
    if (argc < 3) {
        std::fprintf(stderr, "usage: classify MODEL IMAGE [THREADS]\n");
        return 2;
    }
    const resfuse::Session session(argv[1], argc > 3 ? std::atoi(argv[3]) : 0);
    const auto preprocessing = session.preprocessing();
    if (!preprocessing) throw std::runtime_error("the model does not say how images are made ready");
    const std::vector<float> x = prepare(read_image(argv[2]), *preprocessing);
    std::vector<std::int64_t> shape = {1, 3, preprocessing->height, preprocessing->width};
    const std::vector<float> logits = session.run(x.data(), shape);
    if (shape.size() != 2) throw std::runtime_error("the model is no classifier");

    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    double sum = 0.0;
    for (const float logit : logits) sum += std::exp(logit - logits[order[0]]);
    for (std::size_t i = 0; i < std::min<std::size_t>(5, order.size()); ++i)
        std::printf("%5.1f %%  %s\n", 100.0 * std::exp(logits[order[i]] - logits[order[0]]) / sum,
                    session.label(order[i]).c_str());
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 1;
}
