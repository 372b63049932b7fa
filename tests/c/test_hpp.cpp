/* test_hpp.cpp: what fastlstm.hpp adds to fastlstm.h. Compiled with exceptions and with -fno-exceptions.
 *
 *     test_hpp MODEL      a model of numbers; ends with 0, or tells the line of the first wrong result */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include <fastlstm.hpp>

using fastlstm::Batch;
using fastlstm::Handle;
using fastlstm::Model;
using fastlstm::Stream;

template <class T>
constexpr bool moves_only = std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T> &&
                            !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>;
static_assert(moves_only<Model> && moves_only<Stream> && moves_only<Batch>, "move-only");

#define CHECK(what) ((what) ? (void)0 : fail(__LINE__, #what))

[[noreturn]] static void fail(int line, const char *what) {
    std::fprintf(stderr, "line %d: %s\n", line, what);
    std::exit(1);
}

/* The code of a call, thrown or returned. */
#ifdef FASTLSTM_NO_EXCEPTIONS
#define CODE(call) (call)
#else
template <class Call> static int code_of(Call call) {
    try {
        call();
    } catch (const fastlstm::Error &error) {
        CHECK(std::strlen(error.what()) > 0);
        return error.code();
    }
    return FASTLSTM_OK;
}
#define CODE(call) code_of([&] { call; })
#endif

static std::vector<float> inputs(std::size_t n) {
    std::vector<float> x(n);
    for (std::size_t i = 0; i < n; i++)
        x[i] = static_cast<float>(i % 7) * 0.25f - 0.6f;
    return x;
}

static void streams(const Model &given) {
    Model model = given.share();
    const std::size_t I = model.info().input_size, U = model.info().output_size, T = 5;
    Stream stream(model), other(model);
    model = Model(); /* the streams keep the weights */
    const std::vector<float> x = inputs(T * I), first(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(I));
    std::vector<float> y(T * U), again(T * U), one(U), none;
    CHECK(CODE(stream.run(x, y)) == FASTLSTM_OK);
    CHECK(y[0] != 0 && y[(T - 1) * U] != y[0]);
    CHECK(CODE(stream.run(x, none)) == FASTLSTM_SHAPE);
    CHECK(CODE(stream.step(x, one)) == FASTLSTM_SHAPE);
    CHECK(CODE(stream.step(first, none)) == FASTLSTM_SHAPE);

    const std::vector<std::uint8_t> state = stream.export_state();
    CHECK(state.size() == given.info().state_bytes);
    CHECK(CODE(other.import_state(state)) == FASTLSTM_OK);
    CHECK(other.export_state() == state);
    std::vector<std::uint8_t> damaged = state;
    damaged[state.size() / 2] ^= 1;
    fastlstm_error error;
    CHECK(CODE(other.import_state(damaged, 0, &error)) == FASTLSTM_STATE);
    CHECK(error.code == FASTLSTM_STATE && error.message[0]);
    CHECK(other.export_state() == state);

    CHECK(CODE(stream.reset()) == FASTLSTM_OK);
    Stream moved(std::move(stream));
    CHECK(moved && !stream);
    CHECK(CODE(stream.reset()) == FASTLSTM_ARGUMENT);
    CHECK(CODE(moved.step(first, one)) == FASTLSTM_OK);
    CHECK(std::memcmp(one.data(), y.data(), U * sizeof(float)) == 0);
    CHECK(CODE(moved.copy_from(other)) == FASTLSTM_OK);
    CHECK(moved.export_state() == state);
    CHECK(CODE(moved.run(x.data(), T, again.data())) == FASTLSTM_OK);
    CHECK(again != y); /* it goes on from the state */
    CHECK(CODE(moved.step_id(1 << 30, one.data())) == FASTLSTM_ARGUMENT);
}

static void batches(const Model &model) {
    const std::size_t I = model.info().input_size, U = model.info().output_size;
    Batch batch(model, 0, 2);
    Stream alone(model);
    const std::vector<Handle> handles = {batch.open(), batch.open()};
    CHECK(handles[0] && handles[1] && handles[0] != handles[1] && batch.count() == 2);
#ifdef FASTLSTM_NO_EXCEPTIONS
    CHECK(batch.open() == 0);
#else
    CHECK(CODE(batch.open()) == FASTLSTM_FULL);
#endif
    CHECK(batch.count() == 2);
    const std::vector<float> x = inputs(2 * I);
    std::vector<float> y(2 * U), one(U);
    CHECK(CODE(batch.step(handles, x, y)) == FASTLSTM_OK);
    CHECK(CODE(alone.step(x.data() + I, one.data())) == FASTLSTM_OK);
    CHECK(std::memcmp(one.data(), y.data() + U, U * sizeof(float)) == 0);
    CHECK(batch.export_state(handles[1]) == alone.export_state());
    CHECK(CODE(batch.step(handles, one, y)) == FASTLSTM_SHAPE);
    CHECK(CODE(batch.step({handles[0], handles[0]}, x, y)) == FASTLSTM_TWICE);
    CHECK(CODE(batch.import_state(handles[0], alone.export_state())) == FASTLSTM_OK);
    CHECK(batch.export_state(handles[0]) == alone.export_state());
    CHECK(CODE(batch.reset(handles[0])) == FASTLSTM_OK);
    CHECK(batch.export_state(handles[0]) != alone.export_state());
    CHECK(CODE(batch.close(handles[0])) == FASTLSTM_OK && batch.count() == 1);
    CHECK(CODE(batch.close(handles[0])) == FASTLSTM_CLOSED);
    Batch moved = std::move(batch);
    CHECK(moved && !batch && moved.count() == 1 && batch.count() == 0);
}

static void failures() {
    fastlstm_error error;
    const Model empty;
#ifdef FASTLSTM_NO_EXCEPTIONS
    CHECK(!Model::load("absent.safetensors", nullptr, &error));
    CHECK(!Stream(empty) && !Batch(empty));
    Batch batch(empty);
    CHECK(batch.open() == 0);
#else
    CHECK(CODE(Model::load("absent.safetensors", nullptr, &error)) == FASTLSTM_FILE);
    CHECK(CODE(Stream stream(empty)) == FASTLSTM_ARGUMENT);
    CHECK(CODE(Batch batch(empty)) == FASTLSTM_ARGUMENT);
#endif
    CHECK(error.code == FASTLSTM_FILE && std::strstr(error.message, "absent.safetensors"));
    CHECK(empty.info().input_size == 0 && !empty);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const Model model = Model::load(argv[1]);
    CHECK(model && model.info().state_bytes > 0);
    streams(model);
    batches(model);
    failures();
    return 0;
}
