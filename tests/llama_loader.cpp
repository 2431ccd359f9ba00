// Reads a control vector's file with llama.cpp's own loader, the one behind --control-vector, and
// writes what llama_set_adapter_cvec is given: the width, then the values, layer 1 first.
//
// The wheel of llama-cpp-python installs the library, not its header; these are its declarations.

#include <cstdio>
#include <string>
#include <vector>

struct common_control_vector_load_info {
    float strength;
    std::string fname;
};

struct common_control_vector_data {
    int n_embd;
    std::vector<float> data;
};

common_control_vector_data common_control_vector_load(
    const std::vector<common_control_vector_load_info> & load_infos);

int main(int argc, char ** argv) {
    if (argc != 2) {
        return 2;
    }
    const auto loaded = common_control_vector_load({{1.0f, argv[1]}});
    if (loaded.n_embd == -1) {
        return 1;
    }
    std::fwrite(&loaded.n_embd, sizeof(int), 1, stdout);
    std::fwrite(loaded.data.data(), sizeof(float), loaded.data.size(), stdout);
    return 0;
}
