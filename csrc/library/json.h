/* json.h: reading JSON text from its beginning to its end, without allocation. The text is not trusted.
 *
 * Containers are walked by the caller:
 *
 *     if (json_open(&at, '{'))
 *         while (json_more(&at)) {
 *             json_slice name = json_key(&at);
 *             ... one value is read, or json_skip(&at)
 *         }
 *
 * The first error sets `wrong`; every further call then returns 0, so that a walk ends by itself. */
#ifndef LIB_JSON_H
#define LIB_JSON_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *at, *end;
    const char *wrong; /* what is wrong with the text; NULL: nothing so far */
    int fresh;         /* 1: a container was just opened */
    int depth;         /* open containers */
    uint64_t objects;  /* a bit for each, the innermost last: 1, an object; 0, a list */
} json_text;

/* The characters between the quotation marks of a string, as they stand in the text. */
typedef struct {
    const char *at;
    size_t length;
} json_slice;

json_text json_of(const char *text, size_t length);

int json_open(json_text *text, char bracket); /* '{' or '[': whether the next value is such a container; goes inside */
int json_more(json_text *text);       /* whether a further element comes; past the closing bracket if none does */
json_slice json_key(json_text *text); /* the name of an object's element, past the colon */
char json_kind(json_text *text);      /* the next value: { [ " 0 (a number) t (true) f (false) n (null); 0: none */

/* Reading a value: 1, or 0 with `wrong` set where it is of another kind. */
int json_string(json_text *text, json_slice *to);
int json_whole(json_text *text, int64_t *to); /* a whole number without exponent, of at most 18 digits */
int json_bool(json_text *text, int *to);
int json_skip(json_text *text); /* any value */
int json_end(json_text *text);  /* whether nothing but white space is left */
enum { JSON_DEPTH = 64 };       /* most containers inside one another */

int json_is(json_slice slice, const char *word);

/* A string's characters in UTF-8, without escapes: at most slice.length bytes; returns their number, -1 where an escape is
 * wrong. */
ptrdiff_t json_plain(json_slice slice, char *to);

#endif
