// A second device that is the processor under another name. What mixes tensors of both fails, as on a GPU.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/impl/FakeGuardImpl.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <cstring>

namespace {

constexpr auto kind = c10::DeviceType::PrivateUse1;

struct Memory final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* place = c10::alloc_cpu(bytes);
    return {place, place, &c10::free_cpu, at::Device(kind, 0)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
};

Memory memory;
const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
REGISTER_ALLOCATOR(kind, &memory)
C10_REGISTER_GUARD_IMPL(PrivateUse1, c10::impl::FakeGuardImpl<kind>)
[[maybe_unused]] const bool hooked = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

using Type = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Where = std::optional<at::Device>;
using Flag = std::optional<bool>;
using Format = std::optional<at::MemoryFormat>;

at::Tensor empty(at::IntArrayRef size, Type type, Layout, Where, Flag, Format format) {
  return at::detail::empty_generic(size, &memory, keys, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, Type type, Layout, Where, Flag) {
  return at::detail::empty_strided_generic(size, stride, &memory, keys, c10::dtype_or_default(type));
}

// The same numbers in the same place, as the processor's own.
at::Tensor here(const at::Tensor& x) {
  if (x.device().is_cpu()) return x;
  auto own = at::from_blob(x.data_ptr(), x.sizes(), x.strides(), x.options().device(at::kCPU));
  if (x.is_conj()) own = own.conj();
  return x.is_neg() ? own._neg_view() : own;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  here(to).copy_(here(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar number(const at::Tensor& x) { return here(x).item(); }

at::Tensor& conj_physical_(at::Tensor& x) {
  here(x).conj_physical_();
  return x;
}

at::Tensor& conj_physical_out(const at::Tensor& x, at::Tensor& out) {
  auto own = here(out);
  at::conj_physical_out(own, here(x));
  return out;
}

// As on a GPU, only single numbers and indices may be the processor's.
void refuse_two_devices(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const auto& name = op.schema().name();
  if (name.find("index") != std::string::npos) return;
  bool near = false, far = false;
  const auto look = [&](const at::Tensor& x) {
    if (x.defined() && x.dim() > 0) (x.device().is_cpu() ? near : far) = true;
  };
  for (const auto& value : torch::jit::last(stack, op.schema().arguments().size())) {
    if (value.isTensor()) look(value.toTensor());
    if (value.isTensorList())
      for (const at::Tensor& x : value.toTensorVector()) look(x);
  }
  TORCH_CHECK(!(near && far), name, " has tensors of the processor and of the second device");
}

void on_processor(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  refuse_two_devices(op, *stack);
  at::native::cpu_fallback(op, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &number);
  m.impl("conj_physical_", &conj_physical_);
  m.impl("conj_physical.out", &conj_physical_out);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("resize_", TORCH_FN(at::native::resize_));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("view_as_complex", TORCH_FN(at::native::view_as_complex));
  m.impl("view_as_real", TORCH_FN(at::native::view_as_real));
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_processor>());
}

// a copy takes conjugates and negatives as they are: resolving them would need a copy
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
