// A file in memory, read only; pages come from the file when they are touched.
#pragma once

#include <cstddef>
#include <string>

namespace resfuse {

class MappedFile {
  public:
    // Throws std::runtime_error where the file cannot be read or is empty.
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const std::byte* data() const { return data_; }
    std::size_t size() const { return size_; }
    // Gives the pages back to the system; they come again from the file.
    void release() const;

  private:
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace resfuse
