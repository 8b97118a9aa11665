/* The three steps around the head that touch memory at random, each as one loop.
 *
 * NumPy takes several passes for each, and waits for every line of memory that is not in a cache;
 * here the lines are asked for some rounds before they are needed. What each function does is
 * written in steps.py in NumPy, and the tests hold one against the other.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LINE 8        /* hashes in a line of the table, fingerprints.py */
#define NEVER_EMPTY 1 /* set in every hash that is kept */
#define UNUSED_BITS 1
#define AHEAD 8       /* rows asked for before they are copied: enough to cover a wait */
#define CACHE_LINE 64

#if defined(__GNUC__)
#define FETCH(address) __builtin_prefetch((address), 0, 3)
#else
#define FETCH(address) ((void)(address))
#endif

static int
get_array(PyObject *object, Py_buffer *view, Py_ssize_t itemsize, int ndim, int flags,
          const char *name)
{
    if (PyObject_GetBuffer(object, view, flags | PyBUF_ND) < 0) {
        return -1;
    }
    if (view->itemsize != itemsize || view->ndim != ndim) {
        PyErr_Format(PyExc_TypeError, "%s has %d dimensions of %zd bytes an item, not %d of %zd",
                     name, view->ndim, view->itemsize, ndim, itemsize);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

/* Reads the hashes of keys into a list of their own, and asks for the lines they are in. */
static int
read_hashes(PyObject *keys, int64_t *out, const int64_t *hashes, int64_t mask)
{
    const Py_ssize_t count = PyList_GET_SIZE(keys);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *key = PyList_GET_ITEM(keys, i);
        /* No other kind: its hash would be Python code, which may change the list. */
        if (!PyUnicode_CheckExact(key)) {
            PyErr_Format(PyExc_TypeError, "key %zd is %.100s, not str", i, Py_TYPE(key)->tp_name);
            return -1;
        }
        const int64_t hash = (int64_t)PyObject_Hash(key);
        if (hash == -1 && PyErr_Occurred()) {
            return -1;
        }
        out[i] = hash;
        FETCH(hashes + ((hash >> UNUSED_BITS) & mask) * LINE);
    }
    return 0;
}

static Py_ssize_t
find_numbers(int64_t *slots, Py_ssize_t count, const int64_t *hashes, const int32_t *numbers,
             int64_t mask)
{
    /* First where in the table, so that all of those lines, too, are on their way at once. */
    for (Py_ssize_t i = 0; i < count; i++) {
        const int64_t first = ((slots[i] >> UNUSED_BITS) & mask) * LINE;
        const int64_t wanted = slots[i] | NEVER_EMPTY;
        int64_t place = -1;
        for (int j = 0; j < LINE; j++) {
            place = hashes[first + j] == wanted ? first + j : place;
        }
        slots[i] = place;
        if (place >= 0) {
            FETCH(numbers + place);
        }
    }
    Py_ssize_t found = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (slots[i] >= 0) {
            slots[i] = numbers[slots[i]];
            found++;
        }
    }
    return found;
}

static PyObject *
find(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 4 || !PyList_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "find(keys: list, hashes, numbers, slots)");
        return NULL;
    }
    PyObject *keys = args[0], *result = NULL;
    Py_buffer hashes, numbers, slots;
    if (get_array(args[1], &hashes, sizeof(int64_t), 2, PyBUF_C_CONTIGUOUS, "hashes") < 0) {
        return NULL;
    }
    if (get_array(args[2], &numbers, sizeof(int32_t), 1, PyBUF_C_CONTIGUOUS, "numbers") < 0) {
        goto release_hashes;
    }
    if (get_array(args[3], &slots, sizeof(int64_t), 1, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE,
                  "slots") < 0) {
        goto release_numbers;
    }
    const Py_ssize_t lines = hashes.shape[0];
    if (lines < 1 || (lines & (lines - 1)) || hashes.shape[1] != LINE ||
        numbers.shape[0] != lines * LINE || slots.shape[0] != PyList_GET_SIZE(keys)) {
        PyErr_SetString(PyExc_ValueError, "hashes [lines, 8], lines a power of two; "
                                          "numbers [8 lines]; slots as many as keys");
    } else if (read_hashes(keys, slots.buf, hashes.buf, lines - 1) == 0) {
        result = PyLong_FromSsize_t(
            find_numbers(slots.buf, slots.shape[0], hashes.buf, numbers.buf, lines - 1));
    }
    PyBuffer_Release(&slots);
release_numbers:
    PyBuffer_Release(&numbers);
release_hashes:
    PyBuffer_Release(&hashes);
    return result;
}

/* Copies rows; -1, or the place of a slot that is none. */
static Py_ssize_t
copy_rows(const char *table, Py_ssize_t stride, Py_ssize_t height, const int64_t *slots,
          Py_ssize_t count, char *out, Py_ssize_t width)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        if (slots[i] < 0 || slots[i] >= height) {
            return i;
        }
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (i + AHEAD < count) {
            const char *ahead = table + slots[i + AHEAD] * stride;
            for (Py_ssize_t at = 0; at < width; at += CACHE_LINE) {
                FETCH(ahead + at);
            }
        }
        memcpy(out + i * width, table + slots[i] * stride, (size_t)width);
    }
    return -1;
}

static PyObject *
gather(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "gather(table, slots, rows)");
        return NULL;
    }
    Py_buffer table, slots, rows;
    if (get_array(args[0], &table, sizeof(float), 2, PyBUF_STRIDES, "table") < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    if (get_array(args[1], &slots, sizeof(int64_t), 1, PyBUF_C_CONTIGUOUS, "slots") < 0) {
        goto release_table;
    }
    if (get_array(args[2], &rows, sizeof(float), 2, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, "rows") <
        0) {
        goto release_slots;
    }
    const Py_ssize_t width = table.shape[1];
    if (rows.shape[0] != slots.shape[0] || rows.shape[1] != width ||
        (width > 1 && table.strides[1] != (Py_ssize_t)sizeof(float))) {
        PyErr_SetString(PyExc_ValueError,
                        "table [any, R], numbers of a row side by side; slots [N]; rows [N, R]");
    } else {
        Py_ssize_t wrong;
        Py_BEGIN_ALLOW_THREADS
        wrong = copy_rows(table.buf, table.strides[0], table.shape[0], slots.buf, slots.shape[0],
                          rows.buf, width * (Py_ssize_t)sizeof(float));
        Py_END_ALLOW_THREADS
        if (wrong >= 0) {
            PyErr_Format(PyExc_IndexError, "slot %lld at %zd, the table has %zd rows",
                         (long long)((int64_t *)slots.buf)[wrong], wrong, table.shape[0]);
        } else {
            result = Py_NewRef(Py_None);
        }
    }
    PyBuffer_Release(&rows);
release_slots:
    PyBuffer_Release(&slots);
release_table:
    PyBuffer_Release(&table);
    return result;
}

typedef struct {
    uint64_t key;
    uint32_t place;
} Item;

/* A number that grows as the score falls, and is largest for NaN. */
static uint64_t
falling(double score)
{
    if (isnan(score)) {
        return UINT64_MAX;
    }
    uint64_t bits;
    score += 0.0; /* -0.0 ranks as 0.0 */
    memcpy(&bits, &score, sizeof bits);
    return bits >> 63 ? bits : ~(bits | (UINT64_C(1) << 63));
}

/* Sorts by key, equal ones by place, byte by byte from the lowest; bytes that all share are left. */
static Item *
sort_items(Item *items, Item *spare, Py_ssize_t count)
{
    for (int shift = 0; shift < 64; shift += 8) {
        Py_ssize_t starts[257] = {0};
        for (Py_ssize_t i = 0; i < count; i++) {
            starts[((items[i].key >> shift) & 255) + 1]++;
        }
        if (starts[((items[0].key >> shift) & 255) + 1] == count) {
            continue;
        }
        for (int byte = 0; byte < 256; byte++) {
            starts[byte + 1] += starts[byte];
        }
        for (Py_ssize_t i = 0; i < count; i++) {
            spare[starts[(items[i].key >> shift) & 255]++] = items[i];
        }
        Item *sorted = spare;
        spare = items;
        items = sorted;
    }
    return items;
}

static PyObject *
lists_of(const Item *items, const double *scores, Py_ssize_t best, Py_ssize_t ranked,
         Py_ssize_t count)
{
    PyObject *places = PyList_New(best), *values = PyList_New(best);
    PyObject *unranked = PyList_New(count - ranked);
    if (!places || !values || !unranked) {
        goto fail;
    }
    for (Py_ssize_t i = 0; i < best; i++) {
        PyObject *place = PyLong_FromUnsignedLong(items[i].place);
        PyObject *value = PyFloat_FromDouble(scores[items[i].place]);
        if (!place || !value) {
            Py_XDECREF(place);
            Py_XDECREF(value);
            goto fail;
        }
        PyList_SET_ITEM(places, i, place);
        PyList_SET_ITEM(values, i, value);
    }
    for (Py_ssize_t i = ranked; i < count; i++) {
        PyObject *place = PyLong_FromUnsignedLong(items[i].place);
        if (!place) {
            goto fail;
        }
        PyList_SET_ITEM(unranked, i - ranked, place);
    }
    return Py_BuildValue("(NNN)", places, values, unranked);
fail:
    Py_XDECREF(places);
    Py_XDECREF(values);
    Py_XDECREF(unranked);
    return NULL;
}

static PyObject *
order(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "order(scores, limit)");
        return NULL;
    }
    const Py_ssize_t limit = PyLong_AsSsize_t(args[1]);
    if (limit == -1 && PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer view;
    if (get_array(args[0], &view, sizeof(double), 1, PyBUF_C_CONTIGUOUS, "scores") < 0) {
        return NULL;
    }
    const Py_ssize_t count = view.shape[0];
    const double *scores = view.buf;
    PyObject *result = NULL;
    Item *items = PyMem_New(Item, 2 * count + 1);
    if (count > (Py_ssize_t)UINT32_MAX || limit < 0) {
        PyErr_SetString(PyExc_ValueError, "at most 2**32 - 1 scores, and a limit of 0 or more");
    } else if (!items) {
        PyErr_NoMemory();
    } else {
        Py_ssize_t ranked = 0;
        for (Py_ssize_t i = 0; i < count; i++) {
            items[i].key = falling(scores[i]);
            items[i].place = (uint32_t)i;
            ranked += !isnan(scores[i]);
        }
        const Item *sorted = count ? sort_items(items, items + count, count) : items;
        result = lists_of(sorted, scores, limit < ranked ? limit : ranked, ranked, count);
    }
    PyMem_Free(items);
    PyBuffer_Release(&view);
    return result;
}

static PyMethodDef methods[] = {
    {"find", (PyCFunction)(void (*)(void))find, METH_FASTCALL, NULL},
    {"gather", (PyCFunction)(void (*)(void))gather, METH_FASTCALL, NULL},
    {"order", (PyCFunction)(void (*)(void))order, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "service._ranking", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__ranking(void)
{
    return PyModule_Create(&definition);
}
