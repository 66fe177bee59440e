#include "ptx.h"

#include <cctype>
#include <cstdlib>

namespace emulator {

namespace {

std::vector<std::string> tokens_of(const std::string& text) {
    std::vector<std::string> tokens;
    std::size_t i = 0;
    const auto word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '$' || c == '%'; };
    while (i < text.size()) {
        if (text.compare(i, 2, "//") == 0) {
            i = text.find('\n', i);
            if (i == std::string::npos) break;
        } else if (text.compare(i, 2, "/*") == 0) {
            i = text.find("*/", i);
            if (i == std::string::npos) break;
            i += 2;
        } else if (text[i] == '"') {
            i = text.find('"', i + 1);
            if (i == std::string::npos) break;
            ++i;
        } else if (word(text[i])) {
            const std::size_t begin = i;
            while (i < text.size() && word(text[i])) ++i;
            tokens.push_back(text.substr(begin, i - begin));
        } else {
            if (!std::isspace(static_cast<unsigned char>(text[i]))) tokens.push_back(text.substr(i, 1));
            ++i;
        }
    }
    return tokens;
}

u32 bytes_of_type(const std::string& type) {
    // .b8, .u32, .f64: the digits are bits.
    const std::size_t digits = type.find_first_of("0123456789");
    return digits == std::string::npos ? 0 : static_cast<u32>(std::atoi(type.c_str() + digits)) / 8;
}

// From behind ".entry" to the body; returns where the body begins.
std::size_t read_entry(const std::vector<std::string>& tokens, std::size_t i, Entry& entry) {
    entry.name = tokens[i++];
    u32 bytes = 0;
    bool open = false;
    for (; i < tokens.size() && tokens[i] != "{"; ++i) {
        const std::string& token = tokens[i];
        if (token == "(") open = true;
        else if (open && (token == "," || token == ")")) {
            if (bytes > 0) entry.parameters.push_back(bytes);
            bytes = 0;
            if (token == ")") open = false;
        } else if (open && token == ".align") ++i;
        else if (open && token == "[" && i + 1 < tokens.size()) bytes *= static_cast<u32>(std::atoi(tokens[++i].c_str()));
        else if (open && token[0] == '.' && token != ".param" && token != ".ptr" && token != ".global") bytes = bytes_of_type(token);
        else if (token == ".maxntid" && i + 1 < tokens.size()) entry.threads = static_cast<u32>(std::atoi(tokens[++i].c_str()));
    }
    return i;
}

}  // namespace

std::string read_ptx(const std::string& text, Ptx& ptx) {
    const std::vector<std::string> tokens = tokens_of(text);
    int depth = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] == "{") ++depth;
        else if (tokens[i] == "}") --depth;
        if (depth > 0 || i + 1 >= tokens.size()) continue;
        if (tokens[i] == ".version") {
            ptx.major = std::atoi(tokens[i + 1].c_str());
            const std::size_t point = tokens[i + 1].find('.');
            ptx.minor = point == std::string::npos ? 0 : std::atoi(tokens[i + 1].c_str() + point + 1);
        } else if (tokens[i] == ".target") {
            if (tokens[i + 1].compare(0, 3, "sm_") == 0) ptx.target = std::atoi(tokens[i + 1].c_str() + 3);
        } else if (tokens[i] == ".entry") {
            Entry entry;
            i = read_entry(tokens, i + 1, entry) - 1;
            ptx.entries.push_back(entry);
        }
    }
    if (ptx.major == 0 || ptx.target == 0) return "the text has no .version and .target";
    if (depth != 0) return "a brace is not closed";
    return {};
}

}  // namespace emulator
