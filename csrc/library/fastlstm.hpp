/* fastlstm.hpp: fastlstm.h for C++17. Header only; link with the C library.
 *
 *     auto model = fastlstm::Model::load("model.safetensors");
 *     fastlstm::Stream stream(model);
 *     std::vector<float> x(model.info().input_size), y(model.info().output_size);
 *     stream.step(x, y);
 *
 * The rules of fastlstm.h hold: a model never changes and any number of threads may use it; a stream and a batch are used
 * by one thread at a time. Model, Stream and Batch can be moved and not copied. A stream and a batch keep their model's
 * weights, so that the Model may end before them. A step and a run allocate no memory, neither do they here.
 *
 * What fails throws fastlstm::Error, which tells the code and the sentence, and changes nothing. Where FASTLSTM_NO_EXCEPTIONS
 * is defined, or the compiler has none (-fno-exceptions), nothing throws: functions of type Result return the code of
 * fastlstm.h; Model::load, the constructors and Batch::open return what is empty (`if (!model)`, `if (!stream)`, handle 0).
 * An object that was moved from is empty too: whatever is called then is FASTLSTM_ARGUMENT. */
#ifndef FASTLSTM_HPP
#define FASTLSTM_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fastlstm.h"

#if !defined(FASTLSTM_NO_EXCEPTIONS) && !defined(__cpp_exceptions)
#define FASTLSTM_NO_EXCEPTIONS
#endif

#ifndef FASTLSTM_NO_EXCEPTIONS
#include <stdexcept>
#endif

namespace fastlstm {

using Handle = fastlstm_handle; /* a sequence of a batch */

/* Files of one program may be compiled with exceptions and without: their classes have different names for the linker. */
#ifdef FASTLSTM_NO_EXCEPTIONS
inline namespace with_codes {

using Result = int;

inline int result(int code, const char * = nullptr) noexcept { return code; }

#else
inline namespace with_exceptions {

using Result = void;

class Error : public std::runtime_error {
  public:
    Error(int code, const char *message) : std::runtime_error(message), code_(code) {}
    int code() const noexcept { return code_; } /* FASTLSTM_FILE, ... */

  private:
    int code_;
};

inline void result(int code, const char *message = nullptr) {
    if (code != FASTLSTM_OK)
        throw Error(code, message ? message : fastlstm_strerror(code));
}
#endif

/* ------------------------------------------------------------------------------------------------------------ models */

class Model {
  public:
    Model() noexcept = default; /* empty */

    /* The model of a file. An error that is given gets code and sentence; the same sentence is thrown. */
    static Model load(const std::string &path, const fastlstm_options *options = nullptr,
                      fastlstm_error *error = nullptr) {
        fastlstm_model *found = nullptr;
        fastlstm_error own;
        fastlstm_error *const said = error ? error : &own;
        result(fastlstm_model_load(path.c_str(), options, &found, said), said->message);
        return Model(found);
    }

    /* The model of a file's bytes, which may be freed afterwards. */
    static Model from_memory(const void *bytes, std::size_t length, const fastlstm_options *options = nullptr,
                             fastlstm_error *error = nullptr) {
        fastlstm_model *found = nullptr;
        fastlstm_error own;
        fastlstm_error *const said = error ? error : &own;
        result(fastlstm_model_from_memory(bytes, length, options, &found, said), said->message);
        return Model(found);
    }

    /* A second owner of the same weights. */
    Model share() const noexcept { return Model(held_ ? fastlstm_model_retain(held_.get()) : nullptr); }

    /* Sizes and names; all 0 of an empty model. */
    fastlstm_info info() const noexcept {
        fastlstm_info found = FASTLSTM_INFO_INIT;
        fastlstm_model_info(held_.get(), &found);
        return found;
    }

    explicit operator bool() const noexcept { return held_ != nullptr; }
    fastlstm_model *get() const noexcept { return held_.get(); } /* for functions of fastlstm.h */

  private:
    struct Release {
        void operator()(fastlstm_model *model) const noexcept { fastlstm_model_release(model); }
    };
    explicit Model(fastlstm_model *model) noexcept : held_(model) {}
    std::unique_ptr<fastlstm_model, Release> held_;
};

/* ----------------------------------------------------------------------------------------------------------- streams */

class Stream {
  public:
    /* A new sequence, with a state of 0. */
    explicit Stream(const Model &model) : inputs_(model.info().input_size), outputs_(model.info().output_size) {
        fastlstm_stream *made = nullptr;
        result(fastlstm_stream_new(model.get(), &made));
        held_.reset(made);
    }

    /* One step: x (I), y (U). */
    Result step(const float *x, float *y) { return result(fastlstm_step(held_.get(), x, y)); }
    Result step_id(std::int64_t id, float *y) { return result(fastlstm_step_id(held_.get(), id, y)); }

    /* Several steps: x (steps, I) or ids (steps), y (steps, U). */
    Result run(const float *x, std::size_t steps, float *y) { return result(fastlstm_run(held_.get(), x, steps, y)); }
    Result run_ids(const std::int64_t *ids, std::size_t steps, float *y) {
        return result(fastlstm_run_ids(held_.get(), ids, steps, y));
    }

    /* The same for vectors, whose lengths are checked: FASTLSTM_SHAPE where they are wrong. y keeps its length. */
    Result step(const std::vector<float> &x, std::vector<float> &y) {
        if (held_ && (x.size() != inputs_ || y.size() != outputs_))
            return result(FASTLSTM_SHAPE);
        return step(x.data(), y.data());
    }
    Result run(const std::vector<float> &x, std::vector<float> &y) {
        const std::size_t steps = inputs_ ? x.size() / inputs_ : 0;
        if (held_ && inputs_ && (x.size() != steps * inputs_ || y.size() != steps * outputs_))
            return result(FASTLSTM_SHAPE);
        return run(x.data(), steps, y.data());
    }

    Result reset() { return result(fastlstm_reset(held_.get())); }
    Result copy_from(const Stream &other) { return result(fastlstm_copy(held_.get(), other.held_.get())); }

    /* The state as bytes: those of Python's StreamBatch.export. Without exceptions an empty vector is a failure. */
    std::vector<std::uint8_t> export_state() const {
        std::size_t need = 0;
        result(fastlstm_state_export(held_.get(), nullptr, 0, &need));
        std::vector<std::uint8_t> bytes(need);
        if (need)
            result(fastlstm_state_export(held_.get(), bytes.data(), need, nullptr));
        return bytes;
    }
    /* flags: 0, or FASTLSTM_OTHER_WEIGHTS for the state of a model of the same sizes. */
    Result import_state(const std::vector<std::uint8_t> &bytes, unsigned flags = 0, fastlstm_error *error = nullptr) {
        fastlstm_error own;
        fastlstm_error *const said = error ? error : &own;
        return result(fastlstm_state_import(held_.get(), bytes.data(), bytes.size(), flags, said), said->message);
    }

    explicit operator bool() const noexcept { return held_ != nullptr; }
    fastlstm_stream *get() const noexcept { return held_.get(); }

  private:
    struct Free {
        void operator()(fastlstm_stream *stream) const noexcept { fastlstm_stream_free(stream); }
    };
    std::size_t inputs_, outputs_; /* I, U */
    std::unique_ptr<fastlstm_stream, Free> held_;
};

/* ----------------------------------------------------------------------------------------------------------- batches */

class Batch {
  public:
    /* Room for `capacity` sequences at once; at most `most` of them, 0: the library's limit, 2^26. */
    explicit Batch(const Model &model, std::size_t capacity = 0, std::size_t most = 0)
        : inputs_(model.info().input_size), outputs_(model.info().output_size) {
        fastlstm_batch *made = nullptr;
        result(fastlstm_batch_new(model.get(), capacity, most, &made));
        held_.reset(made);
    }

    /* A new sequence. Without exceptions handle 0, which is none, is a failure. */
    Handle open() {
        Handle handle = 0;
        result(fastlstm_batch_open(held_.get(), &handle));
        return handle;
    }
    Result close(Handle handle) { return result(fastlstm_batch_close(held_.get(), handle)); }
    std::size_t count() const noexcept { return fastlstm_batch_count(held_.get()); }

    /* One step of n sequences: handles (n), x (n, I) or ids (n), y (n, U). */
    Result step(const Handle *handles, std::size_t n, const float *x, float *y) {
        return result(fastlstm_batch_step(held_.get(), handles, n, x, y));
    }
    Result step_ids(const Handle *handles, std::size_t n, const std::int64_t *ids, float *y) {
        return result(fastlstm_batch_step_ids(held_.get(), handles, n, ids, y));
    }

    /* The same for vectors, whose lengths are checked: FASTLSTM_SHAPE where they are wrong. y keeps its length. */
    Result step(const std::vector<Handle> &handles, const std::vector<float> &x, std::vector<float> &y) {
        if (held_ && (x.size() != handles.size() * inputs_ || y.size() != handles.size() * outputs_))
            return result(FASTLSTM_SHAPE);
        return step(handles.data(), handles.size(), x.data(), y.data());
    }

    /* As for streams, of one sequence. */
    Result reset(Handle handle) { return result(fastlstm_batch_reset(held_.get(), handle)); }
    std::vector<std::uint8_t> export_state(Handle handle) const {
        std::size_t need = 0;
        result(fastlstm_batch_export(held_.get(), handle, nullptr, 0, &need));
        std::vector<std::uint8_t> bytes(need);
        if (need)
            result(fastlstm_batch_export(held_.get(), handle, bytes.data(), need, nullptr));
        return bytes;
    }
    Result import_state(Handle handle, const std::vector<std::uint8_t> &bytes, unsigned flags = 0,
                        fastlstm_error *error = nullptr) {
        fastlstm_error own;
        fastlstm_error *const said = error ? error : &own;
        return result(fastlstm_batch_import(held_.get(), handle, bytes.data(), bytes.size(), flags, said),
                      said->message);
    }

    explicit operator bool() const noexcept { return held_ != nullptr; }
    fastlstm_batch *get() const noexcept { return held_.get(); }

  private:
    struct Free {
        void operator()(fastlstm_batch *batch) const noexcept { fastlstm_batch_free(batch); }
    };
    std::size_t inputs_, outputs_; /* I, U */
    std::unique_ptr<fastlstm_batch, Free> held_;
};

} /* inline namespace */

} /* namespace fastlstm */

#endif
