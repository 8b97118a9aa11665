/* Arrays that Python lends to compiled code for the time of a call. */

#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <type_traits>

namespace lent {

constexpr Py_ssize_t CACHE_LINE = 64;
constexpr int READ = PyBUF_C_CONTIGUOUS;
constexpr int WRITE = PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE;

/* Asks for a line of memory before it is needed. */
inline void
fetch(const void *address)
{
#if defined(__GNUC__)
    __builtin_prefetch(address, 0, 3);
#else
    (void)address;
#endif
}

class Array {
public:
    Array() = default;
    Array(const Array &) = delete;
    Array &operator=(const Array &) = delete;

    ~Array()
    {
        if (held_) {
            PyBuffer_Release(&view_);
        }
    }

    /* Whether it is what it must be; if not, an error is set. */
    template <typename Item>
    bool
    take(PyObject *object, int ndim, int flags, const char *name)
    {
        held_ = PyObject_GetBuffer(object, &view_, flags | PyBUF_ND | PyBUF_FORMAT) == 0;
        if (!held_) {
            return false;
        }
        constexpr auto itemsize = static_cast<Py_ssize_t>(sizeof(Item));
        if (view_.itemsize != itemsize || view_.ndim != ndim) {
            PyErr_Format(PyExc_TypeError, "%s has %d dimensions of %zd bytes an item, not %d of %zd",
                         name, view_.ndim, view_.itemsize, ndim, itemsize);
            return false;
        }
        /* As struct has it: one letter where numbers are as this machine has them, and lie so. */
        constexpr const char *letters = std::is_floating_point_v<Item> ? "fd" : "ilq";
        const char *format = view_.format ? view_.format : "B";
        if (!format[0] || !std::strchr(letters, format[0]) || format[1]) {
            PyErr_Format(PyExc_TypeError, "%s holds numbers of type %s, not one of %s", name, format,
                         letters);
            return false;
        }
        return true;
    }

    template <typename Item>
    Item *
    items() const
    {
        return static_cast<Item *>(view_.buf);
    }

    Py_ssize_t
    length(int axis = 0) const
    {
        return view_.shape[axis];
    }

    Py_ssize_t
    stride(int axis) const
    {
        return view_.strides[axis];
    }

private:
    Py_buffer view_{};
    bool held_ = false;
};

} // namespace lent
