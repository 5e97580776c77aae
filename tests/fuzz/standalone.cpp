// Runs a fuzz target without libFuzzer, for compilers that have none and for valgrind and ThreadSanitizer:
// over the files named, over N random inputs, or over N mutations of the files named.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" [[gnu::weak]] std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                                             unsigned seed);

namespace {

using Input = std::vector<std::uint8_t>;

Input read_file(const char* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// Some mutations of mutations, so that changes add up.
int mutate(int count, unsigned seed, char** files, int file_count) {
    constexpr int kGenerations = 3;
    std::mt19937 random(seed);
    std::vector<Input> seeds;
    for (int i = 0; i < file_count; ++i) seeds.push_back(read_file(files[i]));
    for (int i = 0; i < count; ++i) {
        Input input = seeds[random() % seeds.size()];
        const std::size_t generations = 1 + random() % kGenerations;
        for (std::size_t g = 0; g < generations; ++g) {
            const std::size_t size = input.size();
            input.resize(size + 4096);
            input.resize(LLVMFuzzerCustomMutator(input.data(), size, input.size(), static_cast<unsigned>(random())));
        }
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: %s --random N [SEED] | --mutate N SEED FILE... | FILE...\n", argv[0]);
        return 2;
    }
    if (std::string(argv[1]) == "--random" && argc > 2) {
        const unsigned seed = argc > 3 ? static_cast<unsigned>(std::atoi(argv[3])) : 1u;
        std::mt19937 random(seed);
        const int inputs = std::atoi(argv[2]);
        std::fprintf(stderr, "%d random inputs, seed %u\n", inputs, seed);  // before what they may find
        for (int i = 0; i < inputs; ++i) {
            Input bytes(128);
            for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
            LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
        }
        return 0;
    }
    if (std::string(argv[1]) == "--mutate" && argc > 4) {
        std::fprintf(stderr, "%s mutations, seed %s\n", argv[2], argv[3]);
        return mutate(std::atoi(argv[2]), static_cast<unsigned>(std::atoi(argv[3])), argv + 4, argc - 4);
    }
    for (int i = 1; i < argc; ++i) {
        const Input bytes = read_file(argv[i]);
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    std::printf("%d files\n", argc - 1);
}
