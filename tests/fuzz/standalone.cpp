// Runs a fuzz target without libFuzzer, for compilers that have none and for valgrind and ThreadSanitizer:
// over the files named, or over N random inputs.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: %s --random N [SEED] | FILE...\n", argv[0]);
        return 2;
    }
    if (std::string(argv[1]) == "--random" && argc > 2) {
        const unsigned seed = argc > 3 ? static_cast<unsigned>(std::atoi(argv[3])) : 1u;
        std::mt19937 random(seed);
        const int inputs = std::atoi(argv[2]);
        std::fprintf(stderr, "%d random inputs, seed %u\n", inputs, seed);  // before what they may find
        for (int i = 0; i < inputs; ++i) {
            std::vector<std::uint8_t> bytes(128);
            for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
            LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
        }
        return 0;
    }
    for (int i = 1; i < argc; ++i) {
        std::ifstream file(argv[i], std::ios::binary);
        const std::string bytes{std::istreambuf_iterator<char>(file), {}};
        LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    }
    std::printf("%d files\n", argc - 1);
}
