/* Frames of float32 numbers from the standard input through a model that Python has saved; a line of outputs for each.
 *
 *     cmake -B build -Dfastlstm_DIR=$(fastlstm info --cmake-dir) . && cmake --build build
 *     build/stream model.safetensors [state.bin] < frames.f32
 *
 * With a second argument the sequence goes on from the state in that file, if there is one, and leaves its state there. */
#include <cstdio>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>

#include <fastlstm.hpp>

using Bytes = std::vector<std::uint8_t>;

static void restore(fastlstm::Stream &stream, const char *path) {
    std::ifstream file(path, std::ios::binary);
    if (file)
        stream.import_state(Bytes(std::istreambuf_iterator<char>(file), {}));
}

static void keep(const fastlstm::Stream &stream, const char *path) {
    const Bytes bytes = stream.export_state();
    std::ofstream file(path, std::ios::binary);
    file.exceptions(std::ios::failbit | std::ios::badbit);
    file.write(reinterpret_cast<const char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

static void listen(const char *path, const char *state) {
    const auto model = fastlstm::Model::load(path);
    const auto info = model.info();
    fastlstm::Stream stream(model);
    if (state)
        restore(stream, state);
    std::vector<float> x(info.input_size), y(info.output_size);
    std::cout << std::setprecision(9);
    const std::size_t frame = x.size() * sizeof(float);
    std::size_t got; /* bytes */
    while ((got = std::fread(x.data(), 1, frame, stdin)) == frame) {
        stream.step(x, y); /* allocates nothing */
        for (std::size_t i = 0; i < y.size(); i++)
            std::cout << y[i] << (i + 1 < y.size() ? ' ' : '\n');
    }
    if (got)
        throw std::runtime_error("the last frame is cut short");
    if (state)
        keep(stream, state);
}

int main(int argc, char **argv) {
    try {
        if (argc < 2)
            throw std::runtime_error("give the file of a model");
        listen(argv[1], argc > 2 ? argv[2] : nullptr);
    } catch (const std::exception &error) { /* fastlstm::Error is one, and has a code too */
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
    return 0;
}
