/* checksum.h: a checksum of a stretch of memory, by which a change of weights is noticed.
 *
 * The memory is read in stripes of 8 words of 64 bits. Lane l of a stripe adds the product of the two halves of its word,
 * each with a key that differs for every lane and stripe, and its neighbour lane adds the word itself (the accumulator of
 * XXH3, Collet 2019, with keys that never repeat). A change of one word thus always changes a lane; words that change
 * places meet other keys. */

enum { CHECKSUM_LANES = 8, CHECKSUM_STRIPE = 8 * CHECKSUM_LANES };

#define CHECKSUM_STEP UINT64_C(0x9e3779b97f4a7c15) /* 2^64 / golden ratio: no key comes twice */

/* Adds stripes to the lanes, and moves the keys on. */
#if VL >= 8 /* x86 */
static void checksum_stripes(uint64_t *lane, uint64_t *key, const char *at, ptrdiff_t stripes) {
    const __m256i step = _mm256_set1_epi64x((long long)CHECKSUM_STEP);
    __m256i lanes[2], keys[2];
    memcpy(lanes, lane, sizeof lanes);
    memcpy(keys, key, sizeof keys);
    for (; stripes > 0; stripes--, at += CHECKSUM_STRIPE) {
        for (int half = 0; half < 2; half++) {
            const __m256i word = _mm256_loadu_si256((const __m256i *)(const void *)(at + 32 * half));
            const __m256i mixed = _mm256_xor_si256(word, keys[half]);
            const __m256i product = _mm256_mul_epu32(mixed, _mm256_srli_epi64(mixed, 32));
            const __m256i swapped = _mm256_shuffle_epi32(word, 0x4e);
            lanes[half] = _mm256_add_epi64(lanes[half], _mm256_add_epi64(product, swapped));
            keys[half] = _mm256_add_epi64(keys[half], step);
        }
    }
    memcpy(lane, lanes, sizeof lanes);
    memcpy(key, keys, sizeof keys);
}
#else
static void checksum_stripes(uint64_t *restrict lane, uint64_t *restrict key, const char *at, ptrdiff_t stripes) {
    for (; stripes > 0; stripes--, at += CHECKSUM_STRIPE) {
        uint64_t word[CHECKSUM_LANES];
        memcpy(word, at, sizeof word);
        for (int l = 0; l < CHECKSUM_LANES; l++) {
            const uint64_t mixed = word[l] ^ key[l];
            lane[l] += (mixed & 0xffffffffu) * (mixed >> 32) + word[l ^ 1];
            key[l] += CHECKSUM_STEP;
        }
    }
}
#endif

static uint64_t checksum(const void *memory, ptrdiff_t bytes) {
    const char *at = memory;
    uint64_t lane[CHECKSUM_LANES] = {0}, key[CHECKSUM_LANES], sum = (uint64_t)bytes;
    for (int l = 0; l < CHECKSUM_LANES; l++)
        key[l] = UINT64_C(0xd6e8feb86659fd93) * (uint64_t)(2 * l + 1);
    const ptrdiff_t stripes = bytes / CHECKSUM_STRIPE, whole = stripes * CHECKSUM_STRIPE;
    checksum_stripes(lane, key, at, stripes);
    char rest[CHECKSUM_STRIPE] = {0};
    memcpy(rest, at + whole, (size_t)(bytes - whole));
    checksum_stripes(lane, key, rest, 1);
    for (int l = 0; l < CHECKSUM_LANES; l++) {
        sum = (sum ^ lane[l]) * UINT64_C(0x9fb21c651e98df25);
        sum ^= sum >> 32;
    }
    return sum;
}
