/* The compiled score head as Python sees it; what it does is in head_pass.hpp. */

#include "head_pass.hpp"

#include <exception>
#include <memory>
#include <new>

#if defined(__GNUC__) && defined(__x86_64__)
#define HAS_WAYS 1
#else
#define HAS_WAYS 0
#endif

namespace {

using head::Head;
using head::Job;
using head::MOST_ROWS;
using lent::Array;
using lent::CACHE_LINE;
using lent::READ;
using lent::WRITE;

/* Of compiled_head.py, too: a library that was built for another one is not used. */
constexpr int INTERFACE = 1;
constexpr double LOG2_E = 1.4426950408889634;
constexpr Py_ssize_t WIDEST = 1 << 20; /* of any side of a head's matrices */
constexpr const char *NAME = "model_store._head";

#if HAS_WAYS

/* With 512 bits there are 32 registers, with 256 half as many. */
using Wide = head::Pass<16, 1, 2, 8>;
using Narrow = head::Pass<8, 2, 1, 6>;

__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"), flatten)) void
run_wide(const Head &head, const Job &job, float *space)
{
    Wide(head, job, space).run();
}

__attribute__((target("avx2,fma"), flatten)) void
run_narrow(const Head &head, const Job &job, float *space)
{
    Narrow(head, job, space).run();
}

bool
can_run(long way)
{
    const bool narrow = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return narrow && (way == 256 || (way == 512 && wide));
}

/* False for want of memory. */
bool
run(long way, const Head &head, const Job &job)
{
    const long room = way == 512 ? Wide::room(head, job.blocks) : Narrow::room(head, job.blocks);
    const auto bytes = static_cast<size_t>(room) * sizeof(float);
    constexpr auto aligned = std::align_val_t{CACHE_LINE};
    auto *space = static_cast<float *>(::operator new(bytes, aligned, std::nothrow));
    if (!space) {
        return false;
    }
    (way == 512 ? run_wide : run_narrow)(head, job, space);
    ::operator delete(space, aligned);
    return true;
}

#else

bool
can_run(long)
{
    return false;
}

bool
run(long, const Head &, const Job &)
{
    return false;
}

#endif

std::vector<float>
copied(const Array &array, size_t spare = 0)
{
    const auto *from = array.items<float>();
    std::vector<float> copy(from, from + array.length() * array.length(1));
    copy.resize(copy.size() + spare, 0.0f);
    return copy;
}

void
forget(PyObject *capsule)
{
    delete static_cast<Head *>(PyCapsule_GetPointer(capsule, NAME));
}

PyObject *
prepare(PyObject *, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 6) {
        PyErr_SetString(PyExc_TypeError, "prepare(key, score, user, interaction, output, bias)");
        return nullptr;
    }
    const bool interacts = args[3] != Py_None;
    Array key, score, user, interaction, output;
    if (!key.take<float>(args[0], 2, READ, "key") ||
        !score.take<float>(args[1], 2, READ, "score") ||
        !user.take<float>(args[2], 2, READ, "user") ||
        (interacts && !interaction.take<float>(args[3], 2, READ, "interaction")) ||
        !output.take<float>(args[4], 1, READ, "output")) {
        return nullptr;
    }
    const Py_ssize_t units = key.length(), width = key.length(1), hidden = user.length();
    if (width < 1 || width > WIDEST || units > WIDEST || hidden > WIDEST ||
        score.length() != width || score.length(1) != units || user.length(1) != width ||
        output.length() != hidden ||
        (interacts && (interaction.length() != hidden || interaction.length(1) != width))) {
        PyErr_SetString(PyExc_ValueError,
                        "key [H, D], score [D, H], user and interaction [E, D], output [E]; D at "
                        "least 1, none above 2**20");
        return nullptr;
    }
    const double bias = PyFloat_AsDouble(args[5]);
    if (bias == -1.0 && PyErr_Occurred()) {
        return nullptr;
    }
    try {
        auto head = std::make_unique<Head>();
        const auto spare = static_cast<size_t>(MOST_ROWS * width);
        head->units = units;
        head->width = width;
        head->hidden = hidden;
        head->bias = static_cast<float>(bias);
        head->key = copied(key);
        head->score = copied(score);
        for (float &each : head->score) {
            each = static_cast<float>(each * LOG2_E);
        }
        head->user = copied(user, spare);
        if (interacts) {
            head->interaction = copied(interaction, spare);
        }
        const auto *given = output.items<float>();
        head->output.assign(given, given + hidden);
        PyObject *capsule = PyCapsule_New(head.get(), NAME, forget);
        if (capsule) {
            head.release();
        }
        return capsule;
    } catch (const std::exception &) {
        return PyErr_NoMemory();
    }
}

/* Whether arrays fit a head and one another; if not, an error is set. */
bool
fits(const Head &head, const Array &profile, const Array &table, const Array *slots,
     const Array &logits)
{
    const Py_ssize_t count = logits.length(), height = table.length();
    if (profile.length() < 1 || profile.length(1) != head.width || table.length(1) < head.row() ||
        (slots ? slots->length() : height) != count || table.stride(0) % sizeof(float) ||
        (table.length(1) > 1 && table.stride(1) != static_cast<Py_ssize_t>(sizeof(float)))) {
        PyErr_Format(PyExc_ValueError,
                     "profile [1 or more, %ld]; table [any, %ld or more], numbers of a row side by "
                     "side; slots and logits [N], without slots a table of as many rows",
                     head.width, head.row());
        return false;
    }
    for (Py_ssize_t i = 0; slots && i < count; i++) {
        const std::int64_t slot = slots->items<std::int64_t>()[i];
        if (slot < 0 || slot >= height) {
            PyErr_Format(PyExc_IndexError, "slot %lld at %zd, the table has %zd rows",
                         static_cast<long long>(slot), i, height);
            return false;
        }
    }
    return true;
}

PyObject *
score(PyObject *, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 6) {
        PyErr_SetString(PyExc_TypeError, "score(head, way, profile, table, slots, logits)");
        return nullptr;
    }
    const auto *head = static_cast<const Head *>(PyCapsule_GetPointer(args[0], NAME));
    const long way = head ? PyLong_AsLong(args[1]) : -1;
    if (way == -1 && PyErr_Occurred()) {
        return nullptr;
    }
    if (!can_run(way)) {
        PyErr_Format(PyExc_ValueError, "this processor has no way %ld", way);
        return nullptr;
    }
    const bool chosen = args[4] != Py_None;
    Array profile, table, slots, logits;
    if (!profile.take<float>(args[2], 2, READ, "profile") ||
        !table.take<float>(args[3], 2, PyBUF_STRIDES, "table") ||
        (chosen && !slots.take<std::int64_t>(args[4], 1, READ, "slots")) ||
        !logits.take<float>(args[5], 1, WRITE, "logits") ||
        !fits(*head, profile, table, chosen ? &slots : nullptr, logits)) {
        return nullptr;
    }
    const auto stride = table.stride(0) / static_cast<Py_ssize_t>(sizeof(float));
    const Job job{profile.items<float>(), profile.length(), table.items<float>(), stride,
                  chosen ? slots.items<std::int64_t>() : nullptr, logits.length(),
                  logits.items<float>()};
    bool done;
    Py_BEGIN_ALLOW_THREADS
    done = job.count == 0 || run(way, *head, job);
    Py_END_ALLOW_THREADS
    if (!done) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

PyObject *
ways(PyObject *, PyObject *)
{
    if (can_run(512)) {
        return Py_BuildValue("(ii)", 512, 256);
    }
    return can_run(256) ? Py_BuildValue("(i)", 256) : PyTuple_New(0);
}

template <PyObject *Function(PyObject *, PyObject *const *, Py_ssize_t)>
PyCFunction
as_method()
{
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(Function));
}

PyMethodDef methods[] = {
    {"prepare", as_method<prepare>(), METH_FASTCALL, nullptr},
    {"score", as_method<score>(), METH_FASTCALL, nullptr},
    {"ways", ways, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, NAME, nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr,
};

} // namespace

PyMODINIT_FUNC
PyInit__head()
{
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0) {
        Py_DECREF(module);
        return nullptr;
    }
    return module;
}
