// How failures of a device become exceptions. For the host's compiler too.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <dsv3/core/view.hpp>
#include <new>
#include <stdexcept>
#include <string>

namespace dsv3 {

/// Device memory that was asked for and is not there; nothing has changed.
class OutOfDeviceMemory : public std::bad_alloc {
 public:
  OutOfDeviceMemory(Index wanted, std::size_t free, std::size_t all)
      : message_("Cuda::allocate: bytes (" + std::to_string(wanted) +
                 ") must be at most what is free (" + std::to_string(free) +
                 ") of the device's memory (" + std::to_string(all) + ")") {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

namespace detail {

// Throws std::runtime_error unless the call succeeded: who called what, with which sizes.
inline void check_cuda(cudaError_t error, const char* caller, const char* call,
                       const std::string& sizes = {}) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(
      std::string(caller) + ": " + call + (sizes.empty() ? "" : " (" + sizes + ")") +
      " failed: " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

inline void check_cublas(cublasStatus_t status, const char* caller, const char* call,
                         const std::string& sizes = {}) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string(caller) + ": " + call +
                           (sizes.empty() ? "" : " (" + sizes + ")") +
                           " failed: " + cublasLtGetStatusName(status));
}

}  // namespace detail

}  // namespace dsv3
