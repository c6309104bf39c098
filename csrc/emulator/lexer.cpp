#include "emulator/lexer.h"

#include <bit>
#include <charconv>

#include "emulator/ir.h"

namespace pykernels::emulator {
namespace {

constexpr std::string_view kPunctuation = "{}()[]<>,;:@!|+-=*/~&^?";

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

bool is_name_start(char c) { return is_letter(c) || c == '_' || c == '$' || c == '%'; }

bool is_name_part(char c) { return is_letter(c) || is_digit(c) || c == '_' || c == '$'; }

/// Value of a digit in any base up to 16, or 16.
int digit_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 16;
}

}  // namespace

Lexer::Lexer(std::string_view text) : text_(text) { advance(); }

Token Lexer::next() {
  Token token = current_;
  if (token.kind != TokenKind::kEnd) advance();
  return token;
}

bool Lexer::begins_with(std::string_view text) const {
  if (current_.kind == TokenKind::kEnd || current_.text.empty()) return false;
  if (current_.kind == TokenKind::kString || current_.text.size() != 1) return false;
  const auto begin = static_cast<size_t>(current_.text.data() - text_.data());
  return text_.substr(begin, text.size()) == text;
}

std::string Lexer::source_line(int line) const {
  size_t begin = 0;
  for (int i = 1; i < line; ++i) {
    const size_t end = text_.find('\n', begin);
    if (end == std::string_view::npos) return "";
    begin = end + 1;
  }
  std::string_view rest = text_.substr(begin);
  rest = rest.substr(0, rest.find('\n'));
  if (!rest.empty() && rest.back() == '\r') rest.remove_suffix(1);
  return std::string(rest);
}

void Lexer::fail(int line, const std::string& message) const {
  throw PtxError(line, source_line(line), message);
}

void Lexer::advance() {
  skip_blanks();
  current_ = Token();
  current_.line = line_;
  if (position_ >= text_.size()) return;
  const char c = text_[position_];
  if (is_name_start(c)) return lex_name();
  if (c == '.') return lex_dot_name();
  if (is_digit(c)) return lex_number();
  if (c == '"') return lex_string();
  if (kPunctuation.find(c) == std::string_view::npos) fail(line_, "unexpected character");
  current_.kind = TokenKind::kPunctuation;
  current_.text = text_.substr(position_++, 1);
}

void Lexer::skip_blanks() {
  while (position_ < text_.size()) {
    const char c = text_[position_];
    if (c == '\n') {
      ++line_;
      ++position_;
    } else if (c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v') {
      ++position_;
    } else if (c == '/' && at(position_ + 1) == '/') {
      while (position_ < text_.size() && text_[position_] != '\n') ++position_;
    } else if (c == '/' && at(position_ + 1) == '*') {
      skip_block_comment();
    } else {
      return;
    }
  }
}

void Lexer::skip_block_comment() {
  const size_t end = text_.find("*/", position_ + 2);
  if (end == std::string_view::npos) fail(line_, "comment without an end");
  for (; position_ < end + 2; ++position_) line_ += text_[position_] == '\n';
}

void Lexer::lex_name() {
  const size_t begin = position_++;
  while (is_name_part(at(position_))) ++position_;
  current_.kind = TokenKind::kIdentifier;
  current_.text = text_.substr(begin, position_ - begin);
}

void Lexer::lex_dot_name() {
  const size_t begin = position_++;
  while (is_name_part(at(position_)) ||
         (at(position_) == ':' && at(position_ + 1) == ':' && is_name_part(at(position_ + 2)))) {
    position_ += at(position_) == ':' ? 2 : 1;
  }
  if (position_ == begin + 1) fail(line_, "a name must follow '.'");
  current_.kind = TokenKind::kDotName;
  current_.text = text_.substr(begin, position_ - begin);
}

void Lexer::lex_number() {
  const size_t begin = position_;
  if (lex_float_pattern()) return;
  const char prefix = at(begin) == '0' ? at(begin + 1) : '\0';
  if (prefix == 'x' || prefix == 'X') {
    position_ += 2;
    return lex_integer(begin, 16);
  }
  if (prefix == 'b' || prefix == 'B') {
    position_ += 2;
    return lex_integer(begin, 2);
  }
  size_t end = begin;
  while (is_digit(at(end))) ++end;
  if (at(end) == '.' || at(end) == 'e' || at(end) == 'E') return lex_decimal_float(begin);
  lex_integer(begin, at(begin) == '0' ? 8 : 10);
}

/// 0f and eight, or 0d and sixteen hexadecimal digits.
bool Lexer::lex_float_pattern() {
  const char kind = static_cast<char>(at(position_ + 1) | 0x20);
  if (at(position_) != '0' || (kind != 'f' && kind != 'd')) return false;
  const size_t begin = position_;
  const size_t digits = kind == 'f' ? 8 : 16;
  position_ += 2;
  for (size_t i = 0; i < digits; ++i, ++position_) {
    const int value = digit_value(at(position_));
    if (value == 16) fail(line_, "floating-point pattern with too few digits");
    current_.bits = current_.bits << 4 | static_cast<uint64_t>(value);
  }
  if (is_name_part(at(position_))) fail(line_, "floating-point pattern with too many digits");
  current_.kind = TokenKind::kFloat;
  current_.float_bits = kind == 'f' ? 32 : 64;
  current_.text = text_.substr(begin, position_ - begin);
  return true;
}

void Lexer::lex_decimal_float(size_t begin) {
  while (is_digit(at(position_))) ++position_;
  if (at(position_) == '.') ++position_;
  while (is_digit(at(position_))) ++position_;
  if (at(position_) == 'e' || at(position_) == 'E') {
    ++position_;
    if (at(position_) == '+' || at(position_) == '-') ++position_;
    if (!is_digit(at(position_))) fail(line_, "exponent without digits");
    while (is_digit(at(position_))) ++position_;
  }
  if (is_name_part(at(position_))) fail(line_, "malformed number");
  current_.kind = TokenKind::kFloat;
  current_.float_bits = 64;
  current_.text = text_.substr(begin, position_ - begin);
  double value = 0;
  const char* last = current_.text.data() + current_.text.size();
  if (std::from_chars(current_.text.data(), last, value).ec != std::errc()) {
    fail(line_, "floating-point number out of range");
  }
  current_.bits = std::bit_cast<uint64_t>(value);
}

void Lexer::lex_integer(size_t begin, int base) {
  const size_t first = position_;
  for (int value = 0; (value = digit_value(at(position_))) < base; ++position_) {
    uint64_t shifted = 0;
    if (__builtin_mul_overflow(current_.bits, static_cast<uint64_t>(base), &shifted)) {
      fail(line_, "integer does not fit 64 bits");
    }
    if (__builtin_add_overflow(shifted, static_cast<uint64_t>(value), &current_.bits)) {
      fail(line_, "integer does not fit 64 bits");
    }
  }
  if (position_ == first) fail(line_, "number without digits");
  if (at(position_) == 'U' || at(position_) == 'u') ++position_;
  if (is_name_part(at(position_))) fail(line_, "malformed number");
  current_.kind = TokenKind::kInteger;
  current_.text = text_.substr(begin, position_ - begin);
}

void Lexer::lex_string() {
  const size_t begin = ++position_;
  while (at(position_) != '"') {
    if (position_ >= text_.size() || text_[position_] == '\n') fail(line_, "string without an end");
    position_ += text_[position_] == '\\' ? 2 : 1;
  }
  current_.kind = TokenKind::kString;
  current_.text = text_.substr(begin, position_ - begin);
  ++position_;
}

}  // namespace pykernels::emulator
