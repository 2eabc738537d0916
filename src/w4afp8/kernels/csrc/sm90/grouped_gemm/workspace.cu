#include "workspace.h"

#include <map>
#include <mutex>
#include <tuple>

namespace w4afp8 {
namespace {

struct Piece {
  void* memory = nullptr;
  size_t flag_bytes = 0, data_bytes = 0;
};

// Allocation is not allowed in a capture unless this thread asks for it; the memory is none of the graph's business.
const char* allocate(Piece& piece) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaStream_t side = nullptr;
  cudaError_t error = cudaMalloc(&piece.memory, piece.flag_bytes + piece.data_bytes);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaMemsetAsync(piece.memory, 0, piece.flag_bytes, side);
  if (error == cudaSuccess) {
    error = cudaMemsetAsync(static_cast<uint8_t*>(piece.memory) + piece.flag_bytes, 0xff, piece.data_bytes, side);
  }
  if (error == cudaSuccess) error = cudaStreamSynchronize(side);
  if (side != nullptr) cudaStreamDestroy(side);
  cudaThreadExchangeStreamCaptureMode(&mode);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* workspace(cudaStream_t stream, size_t flag_bytes, size_t data_bytes, uint32_t** flags, float** data,
                      WorkspaceUser user) {
  static std::mutex mutex;
  static std::map<std::tuple<int, cudaStream_t, unsigned long long, WorkspaceUser>, Piece> pieces;
  const std::lock_guard<std::mutex> lock(mutex);
  int device = 0;
  cudaGetDevice(&device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long capture = 0;
  cudaStreamGetCaptureInfo(stream, &status, &capture);
  if (status != cudaStreamCaptureStatusActive) capture = 0;
  Piece& piece = pieces[{device, stream, capture, user}];
  if (piece.flag_bytes < flag_bytes || piece.data_bytes < data_bytes) {
    piece.flag_bytes = flag_bytes > piece.flag_bytes ? flag_bytes : piece.flag_bytes;
    piece.data_bytes = data_bytes > piece.data_bytes ? data_bytes : piece.data_bytes;
    const char* error = allocate(piece);
    if (error != nullptr) {
      piece = {};
      return error;
    }
  }
  *flags = static_cast<uint32_t*>(piece.memory);
  *data = reinterpret_cast<float*>(static_cast<uint8_t*>(piece.memory) + piece.flag_bytes);
  return nullptr;
}

}  // namespace w4afp8
