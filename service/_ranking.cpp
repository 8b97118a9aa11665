/* The steps around the head that are loops over candidates, each as one loop.
 *
 * NumPy takes several passes for looking up, copying and ordering, and waits for every line of
 * memory that is not in a cache; here the lines are asked for some rounds before they are needed.
 * What each function does is written in steps.py in Python, and the tests hold one against the
 * other.
 */

#include "../model_store/lent_array.hpp"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace {

using lent::Array;
using lent::CACHE_LINE;
using lent::fetch;
using lent::READ;
using lent::WRITE;

/* Of steps.py, too: a library that was built for another one is not used. */
constexpr int INTERFACE = 2;
constexpr int LINE = 8; /* hashes in a line of the table, fingerprints.py */
constexpr std::int64_t NEVER_EMPTY = 1; /* set in every hash that is kept */
constexpr int UNUSED_BITS = 1;
constexpr Py_ssize_t AHEAD = 8; /* what is asked for before it is read: enough to cover a wait */

/* Only exact strings: what Python code might do in between may change the list. */
PyObject *
key_at(PyObject *keys, Py_ssize_t place)
{
    PyObject *key = PyList_GET_ITEM(keys, place);
    if (!PyUnicode_CheckExact(key)) {
        PyErr_Format(PyExc_TypeError, "key %zd is %.100s, not str", place, Py_TYPE(key)->tp_name);
        return nullptr;
    }
    return key;
}

/* Reads the hashes of keys into a list of their own, and asks for the lines they are in. */
bool
read_hashes(PyObject *keys, std::int64_t *out, const std::int64_t *hashes, std::int64_t mask)
{
    const Py_ssize_t count = PyList_GET_SIZE(keys);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *key = key_at(keys, i);
        if (!key) {
            return false;
        }
        const std::int64_t hash = PyObject_Hash(key);
        if (hash == -1 && PyErr_Occurred()) {
            return false;
        }
        out[i] = hash;
        fetch(hashes + ((hash >> UNUSED_BITS) & mask) * LINE);
    }
    return true;
}

Py_ssize_t
find_numbers(std::int64_t *slots, Py_ssize_t count, const std::int64_t *hashes,
             const std::int32_t *numbers, std::int64_t mask)
{
    /* First where in the table, so that all of those lines, too, are on their way at once. */
    for (Py_ssize_t i = 0; i < count; i++) {
        const std::int64_t first = ((slots[i] >> UNUSED_BITS) & mask) * LINE;
        const std::int64_t wanted = slots[i] | NEVER_EMPTY;
        std::int64_t place = -1;
        for (int j = 0; j < LINE; j++) {
            place = hashes[first + j] == wanted ? first + j : place;
        }
        slots[i] = place;
        if (place >= 0) {
            fetch(numbers + place);
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

PyObject *
find(PyObject *, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 4 || !PyList_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "find(keys: list, hashes, numbers, slots)");
        return nullptr;
    }
    Array hashes, numbers, slots;
    if (!hashes.take<std::int64_t>(args[1], 2, READ, "hashes") ||
        !numbers.take<std::int32_t>(args[2], 1, READ, "numbers") ||
        !slots.take<std::int64_t>(args[3], 1, WRITE, "slots")) {
        return nullptr;
    }
    const Py_ssize_t lines = hashes.length();
    if (lines < 1 || (lines & (lines - 1)) || hashes.length(1) != LINE ||
        numbers.length() != lines * LINE || slots.length() != PyList_GET_SIZE(args[0])) {
        PyErr_SetString(PyExc_ValueError, "hashes [lines, 8], lines a power of two; "
                                          "numbers [8 lines]; slots as many as keys");
        return nullptr;
    }
    auto *out = slots.items<std::int64_t>();
    const auto *kept = hashes.items<std::int64_t>();
    if (!read_hashes(args[0], out, kept, lines - 1)) {
        return nullptr;
    }
    return PyLong_FromSsize_t(
        find_numbers(out, slots.length(), kept, numbers.items<std::int32_t>(), lines - 1));
}

/* Copies rows; -1, or the place of a slot that is none. */
Py_ssize_t
copy_rows(const char *table, Py_ssize_t stride, Py_ssize_t height, const std::int64_t *slots,
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
                fetch(ahead + at);
            }
        }
        std::memcpy(out + i * width, table + slots[i] * stride, static_cast<size_t>(width));
    }
    return -1;
}

PyObject *
gather(PyObject *, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "gather(table, slots, rows)");
        return nullptr;
    }
    Array table, slots, rows;
    if (!table.take<float>(args[0], 2, PyBUF_STRIDES, "table") ||
        !slots.take<std::int64_t>(args[1], 1, READ, "slots") ||
        !rows.take<float>(args[2], 2, WRITE, "rows")) {
        return nullptr;
    }
    const Py_ssize_t width = table.length(1);
    if (rows.length() != slots.length() || rows.length(1) != width ||
        (width > 1 && table.stride(1) != static_cast<Py_ssize_t>(sizeof(float)))) {
        PyErr_SetString(PyExc_ValueError,
                        "table [any, R], numbers of a row side by side; slots [N]; rows [N, R]");
        return nullptr;
    }
    const auto *chosen = slots.items<std::int64_t>();
    Py_ssize_t wrong;
    Py_BEGIN_ALLOW_THREADS
    wrong = copy_rows(table.items<char>(), table.stride(0), table.length(), chosen, slots.length(),
                      rows.items<char>(), width * static_cast<Py_ssize_t>(sizeof(float)));
    Py_END_ALLOW_THREADS
    if (wrong >= 0) {
        PyErr_Format(PyExc_IndexError, "slot %lld at %zd, the table has %zd rows",
                     static_cast<long long>(chosen[wrong]), wrong, table.length());
        return nullptr;
    }
    Py_RETURN_NONE;
}

struct Item {
    std::uint64_t key;
    std::int64_t place;
};

/* A number that grows as the score falls, and is largest for NaN. */
std::uint64_t
falling(double score)
{
    if (std::isnan(score)) {
        return UINT64_MAX;
    }
    std::uint64_t bits;
    score += 0.0; /* -0.0 ranks as 0.0 */
    std::memcpy(&bits, &score, sizeof bits);
    return bits >> 63 ? bits : ~(bits | (UINT64_C(1) << 63));
}

/* Sorts by key, equal ones by place, byte by byte from the lowest; bytes that all share are left. */
const Item *
sort_items(Item *items, Item *spare, Py_ssize_t count)
{
    for (int shift = 0; shift < 64 && count; shift += 8) {
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

PyObject *
order(PyObject *, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "order(scores, places, ordered)");
        return nullptr;
    }
    Array scores, places, ordered;
    if (!scores.take<double>(args[0], 1, READ, "scores") ||
        !places.take<std::int64_t>(args[1], 1, WRITE, "places") ||
        !ordered.take<double>(args[2], 1, WRITE, "ordered")) {
        return nullptr;
    }
    const Py_ssize_t count = scores.length();
    if (places.length() != count || ordered.length() != count) {
        PyErr_SetString(PyExc_ValueError, "places and ordered are as many as scores");
        return nullptr;
    }
    Item *items = PyMem_New(Item, 2 * count + 1);
    if (!items) {
        return PyErr_NoMemory();
    }
    const auto *given = scores.items<double>();
    Py_ssize_t ranked = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        items[i] = {falling(given[i]), i};
        ranked += !std::isnan(given[i]);
    }
    const Item *sorted = sort_items(items, items + count, count);
    for (Py_ssize_t i = 0; i < count; i++) {
        places.items<std::int64_t>()[i] = sorted[i].place;
        ordered.items<double>()[i] = given[sorted[i].place];
    }
    PyMem_Free(items);
    return PyLong_FromSsize_t(ranked);
}

constexpr std::string_view BEFORE_ID = "{\"video_id\":\"", BEFORE_INDEX = "\",\"index\":",
                           BEFORE_RANK = ",\"rank\":", BEFORE_SCORE = ",\"score\":", AFTER = "},";
constexpr Py_ssize_t LONGEST_WHOLE = 20;  /* of 64 bits, with its sign */
constexpr Py_ssize_t LONGEST_SCORE = 26;  /* -2.2250738585072014e-308, and ".0" behind a whole one */
constexpr Py_ssize_t LONGEST_ESCAPE = 6;  /* a character as \u0000 */
constexpr Py_ssize_t LONGEST_ROW = BEFORE_ID.size() + BEFORE_INDEX.size() + BEFORE_RANK.size() +
                                   BEFORE_SCORE.size() + AFTER.size() + 2 * LONGEST_WHOLE +
                                   LONGEST_SCORE;

bool
is_plain(unsigned char character)
{
    return character >= 0x20 && character != '"' && character != '\\';
}

char *
put(char *out, std::string_view text)
{
    std::memcpy(out, text.data(), text.size());
    return out + text.size();
}

char *
put_whole(char *out, Py_ssize_t number)
{
    return std::to_chars(out, out + LONGEST_WHOLE, number).ptr;
}

/* The shortest text that reads back as this very number, always one with a fraction or exponent. */
char *
put_score(char *out, double score)
{
    if (!std::isfinite(score)) {
        return put(out, "null");
    }
    char *end = std::to_chars(out, out + LONGEST_SCORE, score).ptr;
    for (const char *each = out; each < end; each++) {
        if (*each == '.' || *each == 'e') {
            return end;
        }
    }
    return put(end, ".0");
}

char *
put_escaped(char *out, std::string_view text)
{
    constexpr const char *digits = "0123456789abcdef";
    for (const char each : text) {
        const auto character = static_cast<unsigned char>(each);
        if (is_plain(character)) {
            *out++ = each;
        } else if (character >= 0x20) {
            *out++ = '\\';
            *out++ = each;
        } else {
            out = put(out, "\\u00");
            *out++ = digits[character >> 4];
            *out++ = digits[character & 15];
        }
    }
    return out;
}

/* The text of a key; its room in JSON is added to what there must be. Nothing where it fails. */
std::string_view
text_of(PyObject *keys, Py_ssize_t place, Py_ssize_t *room)
{
    PyObject *key = key_at(keys, place);
    Py_ssize_t size = 0;
    const char *text = key ? PyUnicode_AsUTF8AndSize(key, &size) : nullptr;
    if (!text) {
        return {};
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        *room += is_plain(static_cast<unsigned char>(text[i])) ? 1 : LONGEST_ESCAPE;
    }
    return {text, static_cast<size_t>(size)};
}

/* Asks for a string, of which all but a long one lies in two lines, before it is read. GCC takes a
 * function that does no more for one that does nothing, and drops the calls of it. */
[[gnu::always_inline]] inline void
fetch_key(PyObject *keys, std::int64_t place)
{
    if (place >= 0 && place < PyList_GET_SIZE(keys)) {
        const auto *key = reinterpret_cast<const char *>(PyList_GET_ITEM(keys, place));
        fetch(key);
        fetch(key + CACHE_LINE);
    }
}

/* How long the rows may be at most; -1 with an error set. */
Py_ssize_t
room_for(PyObject *keys, const std::int64_t *places, Py_ssize_t count)
{
    Py_ssize_t room = count * LONGEST_ROW;
    /* Since they were looked up dozens of other requests may have been begun. */
    for (Py_ssize_t i = 0; i < count && i < AHEAD; i++) {
        fetch_key(keys, places[i]);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (i + AHEAD < count) {
            fetch_key(keys, places[i + AHEAD]);
        }
        if (places[i] < 0 || places[i] >= PyList_GET_SIZE(keys)) {
            PyErr_Format(PyExc_IndexError, "place %lld at %zd, there are %zd keys",
                         static_cast<long long>(places[i]), i, PyList_GET_SIZE(keys));
            return -1;
        }
        if (!text_of(keys, places[i], &room).data()) {
            return -1;
        }
    }
    return room;
}

PyObject *
write(PyObject *, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3 || !PyList_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "write(keys: list, places, scores)");
        return nullptr;
    }
    Array places, scores;
    if (!places.take<std::int64_t>(args[1], 1, READ, "places") ||
        !scores.take<double>(args[2], 1, READ, "scores")) {
        return nullptr;
    }
    const Py_ssize_t count = places.length();
    if (scores.length() != count) {
        PyErr_SetString(PyExc_ValueError, "scores are as many as places");
        return nullptr;
    }
    const auto *chosen = places.items<std::int64_t>();
    Py_ssize_t room = room_for(args[0], chosen, count);
    PyObject *written = room < 0 ? nullptr : PyBytes_FromStringAndSize(nullptr, room);
    if (!written) {
        return nullptr;
    }
    char *const begin = PyBytes_AS_STRING(written), *out = begin;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t taken = 0;
        const std::string_view text = text_of(args[0], chosen[i], &taken);
        out = put(out, BEFORE_ID);
        const bool plain = taken == static_cast<Py_ssize_t>(text.size());
        out = plain ? put(out, text) : put_escaped(out, text);
        out = put_whole(put(out, BEFORE_INDEX), chosen[i]);
        out = put_whole(put(out, BEFORE_RANK), i + 1);
        out = put(put_score(put(out, BEFORE_SCORE), scores.items<double>()[i]), AFTER);
    }
    /* Without the last comma. On failure the bytes are gone, and this is nothing. */
    _PyBytes_Resize(&written, count ? out - begin - 1 : 0);
    return written;
}

template <PyObject *Function(PyObject *, PyObject *const *, Py_ssize_t)>
PyCFunction
as_method()
{
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(Function));
}

PyMethodDef methods[] = {
    {"find", as_method<find>(), METH_FASTCALL, nullptr},
    {"gather", as_method<gather>(), METH_FASTCALL, nullptr},
    {"order", as_method<order>(), METH_FASTCALL, nullptr},
    {"write", as_method<write>(), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "service._ranking", nullptr, 0, methods, nullptr, nullptr, nullptr,
    nullptr,
};

} // namespace

PyMODINIT_FUNC
PyInit__ranking()
{
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0) {
        Py_DECREF(module);
        return nullptr;
    }
    return module;
}
