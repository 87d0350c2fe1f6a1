// Work recorded as CUDA graphs: what is asked of the device a third time costs one launch. For the
// host's compiler too.
#pragma once

#include <dsv3/backend/cuda/context.hpp>
#include <dsv3/core/recorded.hpp>

namespace dsv3 {

/// Runs work(); the second time that a key comes its launches are recorded as a graph, which from
/// then on is launched instead. With CudaOptions::graphs false, or while the stream is being
/// captured already, work() alone.
///
/// Errors   std::runtime_error where a recording fails; those of work().
void run_recorded(Cuda& cuda, const RecordKey& key, auto&& work) {
  if (!cuda.options().graphs) return work();
  cudaStreamCaptureStatus status;
  detail::check_cuda(cudaStreamIsCapturing(cuda.stream(), &status), "run_recorded",
                     "cudaStreamIsCapturing");
  if (status != cudaStreamCaptureStatusNone) return work();
  detail::CudaGraphs::Entry& entry = cuda.graphs().entry(key.bytes());
  if (!entry.graph) {
    if (!entry.seen) {  // the first run loads kernels and lets cuBLASLt choose
      entry.seen = true;
      return work();
    }
    detail::check_cuda(cudaStreamBeginCapture(cuda.stream(), cudaStreamCaptureModeRelaxed),
                       "run_recorded", "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      work();
    } catch (...) {
      cudaStreamEndCapture(cuda.stream(), &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    detail::check_cuda(cudaStreamEndCapture(cuda.stream(), &graph), "run_recorded",
                       "cudaStreamEndCapture");
    const cudaError_t made = cudaGraphInstantiate(&entry.graph, graph, 0);
    cudaGraphDestroy(graph);
    detail::check_cuda(made, "run_recorded", "cudaGraphInstantiate");
  }
  detail::check_cuda(cudaGraphLaunch(entry.graph, cuda.stream()), "run_recorded",
                     "cudaGraphLaunch");
}

/// Lengths of a cache within one multiple share a graph.
inline Index recorded_keys(const Cuda& cuda) { return cuda.options().graphs ? 512 : 1; }

}  // namespace dsv3
