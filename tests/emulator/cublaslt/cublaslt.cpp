// The part of cuBLASLt that products of matrices need, on the emulated device: what is described wrongly is refused or reported, as
// the library's documents have it, and products are computed where the stream comes to them.
//
// The order of a sum depends on the number of columns of the second matrix, as the library's may.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Status : int { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type : int { R_32F = 0, R_16F = 2, R_16BF = 14 };
const int COMPUTE_32F = 68;

// Anything that has a handle. Which it is is checked at every use.
enum class Kind { Handle, Product, Layout, Preference };
struct Object {
    Kind kind;
    // Of a product.
    bool transposed[2] = {false, false};
    // Of a layout.
    int type = 0;
    std::uint64_t rows = 0, columns = 0;
    std::int64_t stride = 0;
    // Of a preference, with the library's defaults.
    std::uint64_t workspace = 0;
    std::uint32_t reductions = 7;
    std::uint32_t alignments[4] = {256, 256, 256, 256};
};

// What is chosen for a product; an algorithm of the library's has 64 bytes.
struct Algorithm {
    std::uint64_t magic;
    std::uint64_t outputs, rows, inputs;
    std::uint64_t workspace;
    std::uint32_t alignments[4];
    std::uint64_t spare;
};
static_assert(sizeof(Algorithm) == 64, "as the library's");
const std::uint64_t MAGIC = 0x656d756c61746564;

struct Choice {
    Algorithm algorithm;
    std::size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

std::recursive_mutex lock;
std::set<Object*> live;
std::uint64_t products = 0;

int wrong(int status, const std::string& text) {
    std::fprintf(stderr, "emulator: cublasLt: %s\n", text.c_str());
    return status;
}

// The emulated driver's functions. It is loaded by then, under this name.
template <typename F>
F driver(const char* name) {
    static void* const library = dlopen("libcuda.so", RTLD_NOW | RTLD_NOLOAD);
    return library ? reinterpret_cast<F>(dlsym(library, name)) : nullptr;
}

bool is(void* what, Kind kind) {
    Object* object = static_cast<Object*>(what);
    return live.count(object) && object->kind == kind;
}

int create(void** made, Kind kind, const Object& as = {}) {
    const std::lock_guard<std::recursive_mutex> held(lock);
    Object* object = new Object(as);
    object->kind = kind;
    live.insert(object);
    *made = object;
    return SUCCESS;
}

int destroy(void* what, Kind kind) {
    const std::lock_guard<std::recursive_mutex> held(lock);
    if (!is(what, kind)) return wrong(INVALID_VALUE, "what is destroyed is not there");
    live.erase(static_cast<Object*>(what));
    delete static_cast<Object*>(what);
    return SUCCESS;
}

bool has_context() {
    const auto current = driver<int (*)(void**)>("cuCtxGetCurrent");
    void* context = nullptr;
    return current && current(&context) == 0 && context;
}

std::size_t bytes_of(int type) { return type == R_32F ? 4 : 2; }

float number(const std::uint8_t* at, int type) {
    if (type == R_32F) {
        float value;
        std::memcpy(&value, at, 4);
        return value;
    }
    std::uint16_t half;
    std::memcpy(&half, at, 2);
    std::uint32_t bits = std::uint32_t{half} << 16;
    if (type == R_16F) {
        const std::uint32_t sign = bits & 0x80000000, exponent = half >> 10 & 31, fraction = half & 1023;
        if (exponent == 0) {
            const float value = static_cast<float>(fraction) * 0x1p-24f;
            return sign ? -value : value;
        }
        bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

struct Matrix {
    std::uint8_t* at;
    Object layout;
    std::uint8_t* item(std::uint64_t row, std::uint64_t column) const {
        return at + (column * static_cast<std::uint64_t>(layout.stride) + row) * bytes_of(layout.type);
    }
    std::size_t bytes() const {
        return ((layout.columns - 1) * static_cast<std::uint64_t>(layout.stride) + layout.rows) * bytes_of(layout.type);
    }
};

// A product on its way.
struct Task {
    Matrix a, b, d;
    std::uint8_t* workspace;
    std::uint64_t workspace_bytes;
};

void run(void* data) {
    const std::unique_ptr<Task> task(static_cast<Task*>(data));
    const auto check = driver<int (*)(const void*, std::uint64_t)>("emulatorHolds");
    const auto fail = driver<void (*)(const char*)>("emulatorFail");
    if (!check(task->a.at, task->a.bytes())) return fail("cublasLtMatmul: the first matrix");
    if (!check(task->b.at, task->b.bytes())) return fail("cublasLtMatmul: the second matrix");
    if (!check(task->d.at, task->d.bytes())) return fail("cublasLtMatmul: the result");
    if (!check(task->workspace, task->workspace_bytes)) return fail("cublasLtMatmul: the workspace");
    std::memset(task->workspace, 0xff, task->workspace_bytes);
    const std::uint64_t inputs = task->a.layout.rows;
    const std::uint64_t run = 16 << task->b.layout.columns % 3;
    for (std::uint64_t column = 0; column < task->d.layout.columns; ++column) {
        for (std::uint64_t row = 0; row < task->d.layout.rows; ++row) {
            float sum = 0;
            for (std::uint64_t first = 0; first < inputs; first += run) {
                float part = 0;
                for (std::uint64_t k = first; k < inputs && k < first + run; ++k)
                    part += number(task->a.item(k, row), task->a.layout.type) * number(task->b.item(k, column), task->b.layout.type);
                sum += part;
            }
            std::memcpy(task->d.item(row, column), &sum, 4);
        }
    }
}

// Whether the layouts are those of D = Aᵀ B, with f32 as result.
bool fits(const Object& product, const Object& a, const Object& b, const Object& c, const Object& d) {
    const auto whole = [](const Object& layout) { return layout.stride >= static_cast<std::int64_t>(layout.rows) && layout.rows > 0 && layout.columns > 0; };
    return product.transposed[0] && !product.transposed[1] && a.rows == b.rows && d.rows == a.columns && d.columns == b.columns && a.type == b.type &&
           d.type == R_32F && c.type == d.type && c.rows == d.rows && c.columns == d.columns && c.stride == d.stride && whole(a) && whole(b) && whole(d);
}

}  // namespace

EXPORT std::size_t cublasLtGetVersion() { return 120103; }

EXPORT const char* cublasLtGetStatusName(int status) {
    return status == SUCCESS ? "CUBLAS_STATUS_SUCCESS" : status == NOT_INITIALIZED ? "CUBLAS_STATUS_NOT_INITIALIZED"
           : status == INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE" : status == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "an unknown status";
}

EXPORT int cublasLtCreate(void** handle) { return has_context() ? create(handle, Kind::Handle) : wrong(NOT_INITIALIZED, "the thread has no current context"); }
EXPORT int cublasLtDestroy(void* handle) { return destroy(handle, Kind::Handle); }

EXPORT int cublasLtMatmulDescCreate(void** product, int compute, int scale) {
    if (compute != COMPUTE_32F || scale != R_32F) return wrong(NOT_SUPPORTED, "sums and scales are f32 here");
    return create(product, Kind::Product);
}
EXPORT int cublasLtMatmulDescDestroy(void* product) { return destroy(product, Kind::Product); }

EXPORT int cublasLtMatmulDescSetAttribute(void* product, int attribute, const void* value, std::size_t bytes) {
    const std::lock_guard<std::recursive_mutex> held(lock);
    if (!is(product, Kind::Product) || bytes != sizeof(int)) return wrong(INVALID_VALUE, "no such product, or an attribute of another size");
    int operation;
    std::memcpy(&operation, value, sizeof operation);
    if ((attribute != 3 && attribute != 4) || (operation != 0 && operation != 1)) return wrong(INVALID_VALUE, "an attribute that is not known here");
    static_cast<Object*>(product)->transposed[attribute - 3] = operation == 1;
    return SUCCESS;
}

EXPORT int cublasLtMatrixLayoutCreate(void** layout, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t stride) {
    if (type != R_32F && type != R_16F && type != R_16BF) return wrong(INVALID_VALUE, "a type that is not known here");
    Object as{Kind::Layout};
    as.type = type;
    as.rows = rows;
    as.columns = columns;
    as.stride = stride;
    return create(layout, Kind::Layout, as);
}
EXPORT int cublasLtMatrixLayoutDestroy(void* layout) { return destroy(layout, Kind::Layout); }

EXPORT int cublasLtMatmulPreferenceCreate(void** preference) { return create(preference, Kind::Preference, Object{Kind::Preference}); }
EXPORT int cublasLtMatmulPreferenceDestroy(void* preference) { return destroy(preference, Kind::Preference); }

EXPORT int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, std::size_t bytes) {
    const std::lock_guard<std::recursive_mutex> held(lock);
    if (!is(preference, Kind::Preference)) return wrong(INVALID_VALUE, "no such preference");
    Object& object = *static_cast<Object*>(preference);
    if (bytes != (attribute == 1 ? 8 : 4)) return wrong(INVALID_VALUE, "an attribute of another size");
    if (attribute == 1) std::memcpy(&object.workspace, value, bytes);
    else if (attribute == 3) std::memcpy(&object.reductions, value, bytes);
    else if (attribute >= 5 && attribute <= 8) std::memcpy(&object.alignments[attribute - 5], value, bytes);
    else return wrong(INVALID_VALUE, "an attribute that is not known here");
    return SUCCESS;
}

EXPORT int cublasLtMatmulAlgoGetHeuristic(void* handle, void* product, void* a, void* b, void* c, void* d, void* preference, int wanted,
                                          Choice* choices, int* found) {
    const std::lock_guard<std::recursive_mutex> held(lock);
    for (void* layout : {a, b, c, d})
        if (!is(layout, Kind::Layout)) return wrong(INVALID_VALUE, "no such layout");
    if (!is(handle, Kind::Handle) || !is(product, Kind::Product) || !is(preference, Kind::Preference) || wanted < 1)
        return wrong(INVALID_VALUE, "no such handle, product or preference");
    const Object &A = *static_cast<Object*>(a), &B = *static_cast<Object*>(b), &C = *static_cast<Object*>(c), &D = *static_cast<Object*>(d);
    const Object& wish = *static_cast<Object*>(preference);
    *found = 0;
    if (!fits(*static_cast<Object*>(product), A, B, C, D)) return wrong(INVALID_VALUE, "the layouts do not fit");
    // A shape for which there is nothing, so that somebody has to do without.
    if (A.rows == 40) return NOT_SUPPORTED;
    if (wish.reductions & 1) return wrong(INVALID_VALUE, "sums in place are in no order");
    const std::uint64_t workspace = wish.workspace < (1 << 20) ? wish.workspace : 1 << 20;
    choices[0] = Choice{};
    choices[0].algorithm = Algorithm{MAGIC, D.rows, D.columns, A.rows, workspace, {}, 0};
    std::memcpy(choices[0].algorithm.alignments, wish.alignments, sizeof wish.alignments);
    choices[0].workspace_bytes = workspace;
    *found = 1;
    return SUCCESS;
}

EXPORT int cublasLtMatmul(void* handle, void* product, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout, const void* beta,
                          const void* c, void* c_layout, void* d, void* d_layout, const Algorithm* algorithm, void* workspace, std::size_t workspace_bytes,
                          void* stream) {
    const std::lock_guard<std::recursive_mutex> held(lock);
    for (void* layout : {a_layout, b_layout, c_layout, d_layout})
        if (!is(layout, Kind::Layout)) return wrong(INVALID_VALUE, "no such layout");
    if (!is(handle, Kind::Handle) || !is(product, Kind::Product)) return wrong(INVALID_VALUE, "no such handle or product");
    if (!has_context()) return wrong(NOT_INITIALIZED, "the thread has no current context");
    const Object &A = *static_cast<Object*>(a_layout), &B = *static_cast<Object*>(b_layout), &C = *static_cast<Object*>(c_layout), &D = *static_cast<Object*>(d_layout);
    if (!fits(*static_cast<Object*>(product), A, B, C, D)) return wrong(INVALID_VALUE, "the layouts do not fit");
    float one, zero;
    std::memcpy(&one, alpha, 4);
    std::memcpy(&zero, beta, 4);
    if (one != 1 || zero != 0 || c != d) return wrong(NOT_SUPPORTED, "only D = Aᵀ B is computed here");
    if (algorithm->magic != MAGIC || algorithm->outputs != D.rows || algorithm->rows != D.columns || algorithm->inputs != A.rows)
        return wrong(INVALID_VALUE, "the algorithm was chosen for another product");
    if (workspace_bytes < algorithm->workspace || reinterpret_cast<std::uintptr_t>(workspace) % 16 != 0) return wrong(INVALID_VALUE, "the workspace is too small, or misaligned");
    const void* const matrices[] = {a, b, c, d};
    for (int i = 0; i < 4; ++i)
        if (reinterpret_cast<std::uintptr_t>(matrices[i]) % algorithm->alignments[i] != 0) return wrong(INVALID_VALUE, "a matrix is aligned less than was promised");
    const auto matrix = [](const void* at, const Object& layout) { return Matrix{static_cast<std::uint8_t*>(const_cast<void*>(at)), layout}; };
    const auto submit = driver<int (*)(void*, void (*)(void*), void*)>("cuLaunchHostFunc");
    Task* task = new Task{matrix(a, A), matrix(b, B), matrix(d, D), static_cast<std::uint8_t*>(workspace), algorithm->workspace};
    if (submit(stream, run, task) != 0) {
        delete task;
        return wrong(INVALID_VALUE, "the stream does not take it");
    }
    ++products;
    return SUCCESS;
}

// --- what tests ask --------------------------------------------------------------------------------------------------------

// Products that were asked for.
EXPORT std::uint64_t emulatorProducts() {
    const std::lock_guard<std::recursive_mutex> held(lock);
    return products;
}

// Handles, descriptions and layouts that are in use.
EXPORT std::uint64_t emulatorProductObjects() {
    const std::lock_guard<std::recursive_mutex> held(lock);
    return live.size();
}
