// Splits PTX text into tokens. Comments and white space vanish; every token keeps its line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pykernels::emulator {

enum class TokenKind : uint8_t {
  kIdentifier,   // add, %r1, $L__BB0_2, _
  kDotName,      // .global, .L1::no_allocate, .2d
  kInteger,      // 12, 0x1f, 0b1, 017; bits
  kFloat,        // 0f3F800000, 0d..., 1.5e3; bits, float_bits
  kString,       // text holds what stands between the quotes, escapes as written
  kPunctuation,  // one character
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  uint8_t float_bits = 0;  // of kFloat: 32 (0f) or 64 (0d and decimal)
  int line = 1;
  uint64_t bits = 0;
  std::string_view text;

  bool is(char punctuation) const {
    return kind == TokenKind::kPunctuation && text[0] == punctuation;
  }
  bool is_directive(std::string_view name) const {
    return kind == TokenKind::kDotName && text == name;
  }
};

/// Throws PtxError at a token that is none.
class Lexer {
 public:
  explicit Lexer(std::string_view text);

  const Token& peek() const { return current_; }
  /// The current token; moves on to the following one.
  Token next();

  /// True where the current token and those right behind it, without blanks, spell this.
  bool begins_with(std::string_view text) const;

  /// Line `line` of the text, without its end.
  std::string source_line(int line) const;
  [[noreturn]] void fail(int line, const std::string& message) const;

 private:
  void advance();
  void skip_blanks();
  void skip_block_comment();
  void lex_name();
  void lex_dot_name();
  void lex_number();
  bool lex_float_pattern();
  void lex_decimal_float(size_t begin);
  void lex_integer(size_t begin, int base);
  void lex_string();
  char at(size_t position) const { return position < text_.size() ? text_[position] : '\0'; }

  std::string_view text_;
  size_t position_ = 0;
  int line_ = 1;
  Token current_;
};

}  // namespace pykernels::emulator
