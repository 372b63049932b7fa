/* checksum.h: a checksum of a stretch of memory, by which a change of weights is noticed.
 *
 * The memory is read in stripes of 8 words of 64 bits, 16 stripes to a block. Lane l of a stripe adds the product of the two
 * halves of its word, each with a key that differs for every lane and stripe of a block (NH, Black et al. 1999); after a
 * block the lanes are mixed (as in XXH3, Collet 2019), so that blocks cannot change places. A product is lost only where its
 * other half equals the key: the halves of keys are bits of NaNs, which weights are not. */

enum { CHECKSUM_LANES = 8, CHECKSUM_STRIPE = 8 * CHECKSUM_LANES, CHECKSUM_BLOCK = 16 };

typedef struct {
    _Alignas(64) uint64_t key[CHECKSUM_BLOCK][CHECKSUM_LANES];
    _Alignas(64) uint64_t lane[CHECKSUM_LANES];
} checksum_state;

#define CHECKSUM_NANS UINT64_C(0x7f8000017f800001) /* two NaNs of 32 bits; further bits may be set */
#define CHECKSUM_PRIME UINT64_C(0x9e3779b1)

/* Adds stripes to the lanes. After a block each lane is mixed by itself: no two values become equal. */
#if VL >= 8 /* x86 */
static void checksum_stripes(checksum_state *state, const char *at, ptrdiff_t stripes) {
    const __m256i prime = _mm256_set1_epi64x((long long)CHECKSUM_PRIME);
    const __m256i *const keys = (const __m256i *)(const void *)state->key;
    __m256i lanes[2];
    memcpy(lanes, state->lane, sizeof lanes);
    while (stripes > 0) {
        const ptrdiff_t n = stripes < CHECKSUM_BLOCK ? stripes : CHECKSUM_BLOCK;
#pragma GCC unroll 2
        for (ptrdiff_t s = 0; s < n; s++, at += CHECKSUM_STRIPE)
            for (int half = 0; half < 2; half++) {
                const __m256i word = _mm256_loadu_si256((const __m256i *)(const void *)(at + 32 * half));
                const __m256i mixed = _mm256_xor_si256(word, _mm256_load_si256(&keys[2 * s + half]));
                lanes[half] = _mm256_add_epi64(lanes[half], _mm256_mul_epu32(mixed, _mm256_srli_epi64(mixed, 32)));
            }
        stripes -= n;
        for (int half = 0; half < 2 && n == CHECKSUM_BLOCK; half++) {
            const __m256i far = _mm256_xor_si256(lanes[half], _mm256_srli_epi64(lanes[half], 47));
            const __m256i lane = _mm256_xor_si256(far, _mm256_load_si256(&keys[half]));
            const __m256i upper = _mm256_mul_epu32(_mm256_srli_epi64(lane, 32), prime);
            lanes[half] = _mm256_add_epi64(_mm256_mul_epu32(lane, prime), _mm256_slli_epi64(upper, 32));
        }
    }
    memcpy(state->lane, lanes, sizeof lanes);
}
#else
static void checksum_stripes(checksum_state *state, const char *at, ptrdiff_t stripes) {
    for (ptrdiff_t s = 0; s < stripes; s++, at += CHECKSUM_STRIPE) {
        const uint64_t *const key = state->key[s % CHECKSUM_BLOCK];
        uint64_t word[CHECKSUM_LANES];
        memcpy(word, at, sizeof word);
        for (int l = 0; l < CHECKSUM_LANES; l++) {
            const uint64_t mixed = word[l] ^ key[l];
            state->lane[l] += (mixed & 0xffffffffu) * (mixed >> 32);
        }
        for (int l = 0; l < CHECKSUM_LANES && s % CHECKSUM_BLOCK == CHECKSUM_BLOCK - 1; l++) {
            const uint64_t lane = state->lane[l] ^ state->lane[l] >> 47 ^ state->key[0][l];
            state->lane[l] = (lane & 0xffffffffu) * CHECKSUM_PRIME + ((lane >> 32) * CHECKSUM_PRIME << 32);
        }
    }
}
#endif

static uint64_t checksum(const void *memory, ptrdiff_t bytes) {
    enum { BLOCK = CHECKSUM_BLOCK * CHECKSUM_STRIPE };
    const char *at = memory;
    uint64_t sum = (uint64_t)bytes;
    checksum_state state = {.lane = {0}};
    for (int k = 0; k < CHECKSUM_BLOCK * CHECKSUM_LANES; k++)
        state.key[k / CHECKSUM_LANES][k % CHECKSUM_LANES] =
            UINT64_C(0x9e3779b97f4a7c15) * (uint64_t)(2 * k + 1) | CHECKSUM_NANS;
    const ptrdiff_t whole = bytes / BLOCK * BLOCK;
    checksum_stripes(&state, at, whole / CHECKSUM_STRIPE);
    at += whole, bytes -= whole;
    char rest[BLOCK] = {0};
    memcpy(rest, at, (size_t)bytes);
    checksum_stripes(&state, rest, (bytes + CHECKSUM_STRIPE - 1) / CHECKSUM_STRIPE);
    for (int l = 0; l < CHECKSUM_LANES; l++) {
        sum = (sum ^ state.lane[l]) * UINT64_C(0x9fb21c651e98df25);
        sum ^= sum >> 32;
    }
    return sum;
}
