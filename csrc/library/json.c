/* json.c: see json.h. */
#include "json.h"

#include <string.h>

json_text json_of(const char *text, size_t length) { return (json_text){.at = text, .end = text + length}; }

static int fail(json_text *t, const char *why) {
    if (!t->wrong)
        t->wrong = why;
    return 0;
}

static char peek(json_text *t) {
    if (t->wrong)
        return 0;
    while (t->at < t->end && (*t->at == ' ' || *t->at == '\t' || *t->at == '\n' || *t->at == '\r'))
        t->at++;
    return t->at < t->end ? *t->at : 0;
}

static int take(json_text *t, char c, const char *why) {
    if (peek(t) != c || !c)
        return fail(t, why);
    t->at++;
    return 1;
}

int json_open(json_text *t, char bracket) {
    if (peek(t) != bracket)
        return fail(t, bracket == '{' ? "an object is expected" : "a list is expected");
    if (t->depth == JSON_DEPTH)
        return fail(t, "it has lists within lists too deep");
    t->at++;
    t->depth++;
    t->objects = t->objects << 1 | (bracket == '{');
    t->fresh = 1;
    return 1;
}

int json_more(json_text *t) {
    const char next = peek(t);
    const int fresh = t->fresh;
    t->fresh = 0;
    if (next == '}' || next == ']') {
        if ((next == '}') != (t->objects & 1))
            return fail(t, "a list or an object ends with the wrong bracket");
        t->at++;
        t->depth--;
        t->objects >>= 1;
        return 0;
    }
    return fresh ? next || fail(t, "it ends within a list or an object") : take(t, ',', "a comma is missing");
}

/* A string; `at` stands at its first quotation mark. */
static int string(json_text *t, json_slice *to) {
    if (!take(t, '"', "a string is expected"))
        return 0;
    const char *const begin = t->at;
    for (; t->at < t->end && *t->at != '"'; t->at++) {
        if ((unsigned char)*t->at < 0x20)
            return fail(t, "a string has a control character");
        if (*t->at == '\\' && ++t->at == t->end)
            break;
    }
    if (t->at >= t->end)
        return fail(t, "a string has no end");
    *to = (json_slice){begin, (size_t)(t->at++ - begin)};
    return 1;
}

int json_string(json_text *t, json_slice *to) { return string(t, to); }

json_slice json_key(json_text *t) {
    json_slice name = {"", 0};
    if (string(t, &name))
        take(t, ':', "a colon is missing");
    return name;
}

char json_kind(json_text *t) {
    const char c = peek(t);
    if (c == '-' || (c >= '0' && c <= '9'))
        return '0';
    return c && strchr("{[\"tfn", c) ? c : 0;
}

static int is_digit(const json_text *t) { return t->at < t->end && *t->at >= '0' && *t->at <= '9'; }

int json_whole(json_text *t, int64_t *to) {
    const int minus = peek(t) == '-';
    t->at += minus && !t->wrong;
    int64_t value = 0;
    int digits = 0;
    for (; !t->wrong && is_digit(t) && digits < 19; t->at++, digits++)
        value = digits < 18 ? 10 * value + (*t->at - '0') : value;
    if (digits == 0 || digits > 18 || (t->at < t->end && *t->at && strchr(".eE", *t->at)))
        return fail(t, "a whole number is expected");
    *to = minus ? -value : value;
    return !t->wrong;
}

static int word(json_text *t, const char *word) {
    const size_t length = strlen(word);
    if ((size_t)(t->end - t->at) < length || memcmp(t->at, word, length) != 0)
        return fail(t, "a word is none of JSON's");
    t->at += length;
    return 1;
}

int json_bool(json_text *t, int *to) {
    const char kind = json_kind(t);
    if (kind != 't' && kind != 'f')
        return fail(t, "true or false is expected");
    *to = kind == 't';
    return word(t, *to ? "true" : "false");
}

static int digits(json_text *t) {
    if (!is_digit(t))
        return fail(t, "a number has no digit where one must be");
    while (is_digit(t))
        t->at++;
    return 1;
}

static int number(json_text *t) {
    t->at += *t->at == '-';
    if (!digits(t))
        return 0;
    if (t->at < t->end && *t->at == '.') {
        t->at++;
        if (!digits(t))
            return 0;
    }
    if (t->at < t->end && (*t->at == 'e' || *t->at == 'E')) {
        t->at++;
        t->at += t->at < t->end && (*t->at == '-' || *t->at == '+');
        return digits(t);
    }
    return 1;
}

/* A value that is no container. */
static int skip_plain(json_text *t) {
    json_slice ignored;
    switch (json_kind(t)) {
    case '"': return string(t, &ignored);
    case '0': return number(t);
    case 't': return word(t, "true");
    case 'f': return word(t, "false");
    case 'n': return word(t, "null");
    default: return fail(t, "a value is expected");
    }
}

int json_skip(json_text *t) {
    const int outside = t->depth;
    do {
        const char kind = json_kind(t);
        if (kind == '{' || kind == '[' ? !json_open(t, kind) : !skip_plain(t))
            return 0;
        while (t->depth > outside && !t->wrong && !json_more(t)) /* the containers that end here */
            ;
        if (t->depth > outside && t->objects & 1)
            json_key(t);
    } while (t->depth > outside && !t->wrong);
    return !t->wrong;
}

int json_end(json_text *t) { return peek(t) == 0 && !t->wrong ? t->at == t->end || fail(t, "it has a zero byte") : 0; }

int json_is(json_slice slice, const char *word) {
    return slice.length == strlen(word) && memcmp(slice.at, word, slice.length) == 0;
}

/* ---------------------------------------------------------------------------------------------------------- escapes */

static int hex(const char *at, const char *end, unsigned *to) {
    if (end - at < 4)
        return 0;
    unsigned value = 0;
    for (int i = 0; i < 4; i++) {
        static const char all[] = "0123456789abcdefABCDEF";
        const char *const digit = at[i] ? strchr(all, at[i]) : NULL;
        if (!digit)
            return 0;
        value = value << 4 | (unsigned)(digit - all - (digit - all > 15 ? 6 : 0));
    }
    *to = value;
    return 1;
}

static char *utf8(char *to, unsigned c) {
    if (c < 0x80) {
        *to++ = (char)c;
        return to;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    *to++ = (char)((more == 1 ? 0xc0 : more == 2 ? 0xe0 : 0xf0) | c >> (6 * more));
    for (int i = more - 1; i >= 0; i--)
        *to++ = (char)(0x80 | (c >> (6 * i) & 0x3f));
    return to;
}

/* The character of \uXXXX, of two of them where they are a pair; *at stands behind the u. */
static int unicode(const char **at, const char *end, unsigned *c) {
    unsigned low;
    if (!hex(*at, end, c))
        return 0;
    *at += 4;
    if (*c < 0xd800 || *c > 0xdfff)
        return 1;
    if (*c > 0xdbff || end - *at < 2 || (*at)[0] != '\\' || (*at)[1] != 'u' || !hex(*at + 2, end, &low) ||
        low < 0xdc00 || low > 0xdfff)
        return 0;
    *at += 6;
    *c = 0x10000 + ((*c - 0xd800) << 10) + (low - 0xdc00);
    return 1;
}

ptrdiff_t json_plain(json_slice slice, char *to) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char *const begin = to;
    const char *at = slice.at, *const end = at + slice.length;
    while (at < end) {
        if (*at != '\\') {
            *to++ = *at++;
            continue;
        }
        if (++at == end)
            return -1;
        const char c = *at++, *const known = c ? strchr(names, c) : NULL;
        unsigned code;
        if (known)
            *to++ = values[known - names];
        else if (c == 'u' && unicode(&at, end, &code))
            to = utf8(to, code);
        else
            return -1;
    }
    return to - begin;
}
