// A pretended CUDA device for a CPU build of torch: its memory is host memory, its kernels are those of the CPU, and
// every operation first checks that its tensors are on one device, as CUDA's own kernels do. Tests only.
#include <ATen/core/Tensor.h>
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace {
using at::Tensor;
constexpr auto CUDA = c10::DeviceType::CUDA;
const c10::Device DEVICE(CUDA, 0);

// ---- memory: counted, aligned and filled with NaN bits, as uninitialised memory of a GPU may be ----
std::atomic<int64_t> allocated{0}, peak{0}, limit{0};
std::atomic<int64_t> calls{0}, waits{0};
void (*on_wait)() = nullptr;
// The fallback itself copies to the CPU and back, which is no wait that CUDA would make.
thread_local bool in_fallback = false;

// ---- copies in the background: done as late as CUDA may do them, so that who does not wait for them finds NaN ----
std::mutex copies_lock;
std::map<int64_t, std::vector<std::function<void()>>> to_device;  // stream -> copies, 0 is the default stream
std::vector<std::function<void()>> to_host;
thread_local int64_t stream = 0;
// All copies that were queued in a stream (-1: in all of them), in their order.
void arrive(int64_t of) {
  std::vector<std::function<void()>> copies;
  { std::lock_guard<std::mutex> hold(copies_lock);
    for (auto& [number, queued] : to_device)
      if (of == number || of < 0) { copies.insert(copies.end(), queued.begin(), queued.end()); queued.clear(); } }
  for (auto& copy : copies) copy();
}
// The host waits here until the device has done all that was queued.
void wait() {
  if (in_fallback) return;
  waits++;
  if (on_wait) on_wait();
  std::vector<std::function<void()>> copies;
  { std::lock_guard<std::mutex> hold(copies_lock); copies.swap(to_host); }
  for (auto& copy : copies) copy();
}
struct Block { void* data; size_t size; };
void release(void* context) {
  auto* block = static_cast<Block*>(context);
  allocated -= block->size;
  std::free(block->data);
  delete block;
}
struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    size_t size = (n + 511) / 512 * 512;  // as CUDA's caching allocator rounds
    if (limit && allocated + (int64_t)size > limit)
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", size, " bytes (pretended).");
    void* data = nullptr;
    if (size) {
      TORCH_CHECK(posix_memalign(&data, 512, size) == 0, "no host memory");
      std::memset(data, 0xFF, size);  // NaN in every float type
    }
    allocated += size;
    int64_t now = allocated;
    if (now > peak) peak = now;
    auto* block = new Block{data, size};
    return {data, block, &release, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
};
Allocator allocator;

// ---- pinned memory: ordinary host memory that is remembered ----
std::mutex pins_lock;
std::set<std::pair<uintptr_t, uintptr_t>> pins;
void unpin(void* data) {
  { std::lock_guard<std::mutex> hold(pins_lock);
    for (auto it = pins.begin(); it != pins.end(); ++it) if (it->first == (uintptr_t)data) { pins.erase(it); break; } }
  std::free(data);
}
struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* data = nullptr;
    TORCH_CHECK(posix_memalign(&data, 64, n ? n : 1) == 0, "no host memory");
    std::lock_guard<std::mutex> hold(pins_lock);
    pins.insert({(uintptr_t)data, (uintptr_t)data + n});
    return {data, data, &unpin, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
};
PinnedAllocator pinned_allocator;

struct Hooks final : at::CUDAHooksInterface {
  Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  int getNumGPUs() const override { return 1; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::mutex> hold(pins_lock);
    for (auto& [from, to] : pins) if ((uintptr_t)data >= from && (uintptr_t)data < to) return true;
    return false;
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  at::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::globalContext().defaultGenerator(c10::Device(c10::DeviceType::CPU));
  }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// ---- the few kernels that a device must have of its own ----
Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(dtype), format);
}
Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           c10::dtype_or_default(dtype));
}
// the same memory as a tensor of the CPU
Tensor host(const Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  auto strides = t.strides(); auto sizes = t.sizes();
  int64_t extent = t.numel() ? 1 : 0;
  for (size_t i = 0; i < sizes.size(); i++) extent += t.numel() ? (sizes[i] - 1) * strides[i] : 0;
  return at::from_blob(t.numel() ? const_cast<void*>(t.const_data_ptr()) : nullptr, sizes, strides, [keep = t](void*) {},
                       at::TensorOptions().dtype(t.scalar_type()).device(at::kCPU));
}
bool pinned(const Tensor& t) { return at::detail::getCUDAHooks().isPinnedPtr(t.storage().data()); }
Tensor& copy_(Tensor& self, const Tensor& src, bool non_blocking) {
  // Only pinned memory is copied while the host goes on; pageable memory passes through a buffer of the driver's.
  bool crosses = self.is_cuda() != src.is_cuda() && !in_fallback, later = non_blocking && pinned(self.is_cuda() ? src : self);
  if (!stream) arrive(0);
  if (crosses && later && self.is_cuda()) {
    std::lock_guard<std::mutex> hold(copies_lock);
    to_device[stream].push_back([self, src] { host(self).copy_(src); });
    return self;
  }
  if (crosses && later) {
    std::memset(self.mutable_data_ptr(), 0xFF, self.nbytes());
    auto then = host(src).clone();  // later work must not change what arrives
    std::lock_guard<std::mutex> hold(copies_lock);
    to_host.push_back([self, then] { Tensor(self).copy_(then); });
    return self;
  }
  if (crosses) wait();
  host(self).copy_(host(src));
  return self;
}
Tensor copy_from(const Tensor& src, const Tensor& self, bool non_blocking) {
  Tensor into = self; copy_(into, src, non_blocking); return self;
}
Tensor copy_from_and_resize(const Tensor& src, const Tensor& self);
at::Scalar local_scalar(const Tensor& t) {
  arrive(0);
  wait();
  return at::_local_scalar_dense(host(t));
}
const Tensor& resize(const Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  int64_t n = self.dtype().itemsize(); for (auto s : size) n *= s;
  n += self.storage_offset() * self.dtype().itemsize();
  if ((size_t)n > self.storage().nbytes()) {
    auto data = allocator.allocate(n);
    if (self.storage().nbytes()) std::memcpy(data.get(), self.storage().data(), self.storage().nbytes());
    self.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
    self.storage().unsafeGetStorageImpl()->set_nbytes(n);
  }
  impl->set_sizes_contiguous(size);
  return self;
}
Tensor copy_from_and_resize(const Tensor& src, const Tensor& self) {  // by cpu_fallback: no copy that CUDA would make
  if (!self.sizes().equals(src.sizes())) resize(self, src.sizes(), std::nullopt);
  host(self).copy_(host(src));
  return self;
}
Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(source);
  self.unsafeGetTensorImpl()->set_storage_offset(offset);
  if (stride.size() || size.empty()) self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  else self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}
Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  int64_t n = source.nbytes() / self.dtype().itemsize();
  return set_storage(self, std::move(source), 0, {n}, {});
}
Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

// ---- everything else ----
// Operations whose result the host must know before it can go on: a size, or a bool.
bool waits_for_values(const std::string& name, const torch::jit::Stack& stack, size_t arguments) {
  static const std::set<std::string> always = {"aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount",
                                               "aten::_unique", "aten::_unique2", "aten::unique_dim",
                                               "aten::unique_consecutive", "aten::unique_dim_consecutive"};
  if (always.count(name)) return true;
  const auto& last = stack.back();
  if (name == "aten::repeat_interleave") return last.isNone();  // output_size
  if (name != "aten::index" && name != "aten::index_put" && name != "aten::index_put_" && name != "aten::_index_put_impl_") return false;
  for (const auto& index : (stack.end() - arguments + 1)->toOptionalTensorVector())
    // a mask becomes indexes by nonzero, indexes on the CPU are copied
    if (index && (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte || (!index->is_cuda() && index->dim()))) return true;
  return false;
}
// Tensors of another device are allowed where CUDA allows them: numbers of no dimensions; indexes of `index`; `copy`.
bool mixes_freely(const std::string& name) {
  static const std::set<std::string> ok = {"aten::index.Tensor", "aten::index.Tensor_out", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
                                           "aten::_pin_memory", "aten::is_pinned"};
  return ok.count(name) > 0;
}
void check(const char* op, const std::string& full, const Tensor& t) {
  if (!t.defined() || t.is_cuda() || t.dim() == 0) return;
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
              full, ", a ", t.scalar_type(), " tensor ", t.sizes(), " on the CPU)");
}
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  calls++;
  arrive(0);
  const auto& schema = op.schema();
  auto name = schema.name();
  auto full = name + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  if (!mixes_freely(full) && !mixes_freely(name)) {
    auto args = torch::jit::last(*stack, schema.arguments().size());
    for (const auto& arg : args) {
      if (arg.isTensor()) check("", full, arg.toTensor());
      else if (arg.isTensorList()) for (const auto& t : arg.toTensorVector()) check("", full, t);
      else if (arg.isOptionalTensorList()) for (const auto& t : arg.toOptionalTensorVector()) if (t) check("", full, *t);
    }
  }
  if (waits_for_values(name, *stack, schema.arguments().size())) wait();
  struct Inside {
    bool before = in_fallback;
    Inside() { in_fallback = true; }
    ~Inside() { in_fallback = before; }
  } inside;
  at::native::cpu_fallback(op, stack);
}

int64_t sdp_choice(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                   std::optional<double>, bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}
}  // namespace

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
}
namespace at::native {
static RegisterCUDADispatch<_fused_sdp_choice_stub_DECLARE_DISPATCH_type> pretended_choice(_fused_sdp_choice_stub, &sdp_choice);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("unfold", &at::native::unfold);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Tensor", &set_tensor);
}

extern "C" {
int64_t pretended_allocated() { return allocated; }
int64_t pretended_peak() { return peak; }
void pretended_reset_peak() { peak = (int64_t)allocated; }
void pretended_set_limit(int64_t n) { limit = n; }
int64_t pretended_calls() { return calls; }
int64_t pretended_waits() { return waits; }
void pretended_wait() { wait(); }
void pretended_set_stream(int64_t number) { stream = number; }
void pretended_arrive(int64_t number) { arrive(number); }
void pretended_on_wait(void (*function)()) { on_wait = function; }
}
