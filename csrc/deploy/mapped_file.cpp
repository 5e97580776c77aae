#include "deploy/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace resfuse {

namespace {

struct Descriptor {
    int number;
    ~Descriptor() {
        if (number >= 0) close(number);
    }
};

}  // namespace

MappedFile::MappedFile(const std::string& path) {
    const auto fail = [&] { throw std::runtime_error(path + ": " + std::strerror(errno)); };
    const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    struct stat status{};
    if (file.number < 0 || fstat(file.number, &status) != 0) fail();
    if (!S_ISREG(status.st_mode)) throw std::runtime_error(path + ": is no regular file");
    if (status.st_size == 0) throw std::runtime_error(path + ": is empty");
    size_ = static_cast<std::size_t>(status.st_size);
    void* const mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number, 0);
    if (mapped == MAP_FAILED) fail();
    data_ = static_cast<std::byte*>(mapped);
}

MappedFile::~MappedFile() { munmap(data_, size_); }

void MappedFile::release() const { madvise(data_, size_, MADV_DONTNEED); }

}  // namespace resfuse
