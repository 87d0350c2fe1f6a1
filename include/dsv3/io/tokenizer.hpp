// Tokenizer: text to token ids and back, from a Hugging Face tokenizer.json. Link pcre2-8.
#pragma once

#include <dsv3/core/view.hpp>
#include <dsv3/io/mapped_file.hpp>
#include <dsv3/io/pre_tokenizer.hpp>
#include <dsv3/io/tokenizer_parts.hpp>
#include <dsv3/io/vocabulary.hpp>
#include <filesystem>
#include <optional>
#include <span>

namespace dsv3 {

/// What becomes of bytes that are not UTF-8.
enum class Malformed {
  refuse,   ///< an error that says where the first one stands
  replace,  ///< U+FFFD stands for each longest part that is no character
  keep      ///< they stay as they are (decoding only)
};

struct EncodeOptions {
  bool added_tokens =
      true;  ///< false: `<...>` in the text is text, as for input nobody has checked
  Malformed malformed = Malformed::refuse;
};

struct DecodeOptions {
  bool skip_special = false;  ///< leave out the tokens that the file calls special
  Malformed malformed = Malformed::keep;
};

/// A byte-level BPE tokenizer. encode() gives the ids of Hugging Face's tokenizers with
/// add_special_tokens=False: nothing is added to what the text says. Const use from several threads
/// is safe. What a file may hold: docs/tokenizer.md.
///
/// Units    ids are those from 0 to size() - 1.
/// Errors   std::invalid_argument "Tokenizer: 'path': ...": a malformed file, or one that asks for
///          something unsupported, named; what MappedFile throws.
/// Source   tokenizers (Hugging Face), models/bpe, pre_tokenizers, added_vocabulary.
class Tokenizer {
 public:
  /// `path` is a tokenizer.json or a folder that holds one.
  explicit Tokenizer(const std::string& path) {
    detail::check_path("Tokenizer", path);
    const bool folder = std::filesystem::is_directory(path);
    const std::string name = folder ? path + "/tokenizer.json" : path;
    const MappedFile file(name);
    *this =
        from_json({static_cast<const char*>(static_cast<const void*>(file.data())), file.size()},
                  "Tokenizer: " + detail::in_quotes(name));
  }

  /// From the text of a tokenizer.json. `where` (a path) begins every message.
  static Tokenizer from_json(std::string_view text, const std::string& where) {
    Tokenizer tokenizer;
    const detail::TokenizerJson file(text, where);
    const detail::TokenizerPart root(file.rest(), "", file);
    check_other_parts(root);
    const bool ignore_merges = read_model(root.part("model"));
    std::vector<detail::AddedToken> added = read_added_tokens(root);
    std::vector<std::string> expressions;
    bool byte_level = false;
    read_pre_tokenizer(root.part("pre_tokenizer"), expressions, byte_level);
    if (!byte_level) file.fail("pre_tokenizer must end in ByteLevel");
    try {
      tokenizer.words_ = detail::PreTokenizer(expressions);
    } catch (const std::invalid_argument& error) {
      file.fail("pre_tokenizer: " + std::string(error.what()));
    }
    tokenizer.vocabulary_ = detail::Vocabulary(file, added, ignore_merges);
    tokenizer.place(std::move(added));
    return tokenizer;
  }

  /// The number of tokens: ids are below it. A model's vocab_size may be larger.
  Index size() const { return static_cast<Index>(vocabulary_.size()); }

  /// The id of an added token, as `<...>` markers are.
  std::optional<std::int32_t> find(std::string_view added) const {
    for (const detail::AddedTokens* tokens : {&first_, &second_})
      if (const detail::AddedToken* token = tokens->find(added)) return token->id;
    return std::nullopt;
  }

  /// Whether the file calls the token special.
  /// Errors   std::invalid_argument where the id is none.
  bool is_special(std::int32_t id) const {
    check_id("Tokenizer::is_special", "id", id);
    return special_[static_cast<std::size_t>(id)];
  }

  /// The bytes of a token, which need not be whole characters. They live as long as the tokenizer.
  /// Errors   std::invalid_argument where the id is none.
  std::string_view bytes(std::int32_t id) const {
    check_id("Tokenizer::bytes", "id", id);
    return vocabulary_.bytes(id);
  }

  /// The ids of a text of at most 2^31 - 1 bytes.
  ///
  /// Errors   std::invalid_argument where the text is longer or not UTF-8; std::runtime_error where
  ///          an expression of the file needs more steps than are allowed it.
  std::vector<std::int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  /// The text of ids. decode(encode(text)) is the text.
  ///
  /// Errors   std::invalid_argument where an id is none, or, by option, the text is not UTF-8.
  std::string decode(std::span<const std::int32_t> ids, const DecodeOptions& options = {}) const {
    const char* who = "Tokenizer::decode";
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (ids[i] < 0 || ids[i] >= size()) check_id(who, "ids[" + std::to_string(i) + "]", ids[i]);
    std::string text;
    for (const std::int32_t id : ids)
      if (!options.skip_special || !special_[static_cast<std::size_t>(id)])
        text += vocabulary_.bytes(id);
    if (options.malformed == Malformed::keep) return text;
    return checked(who, text, options.malformed);
  }

 private:
  Tokenizer() = default;

  void check_id(const char* who, const std::string& name, std::int32_t id) const {
    if (id < 0 || id >= size())
      throw std::invalid_argument(std::string(who) + ": " + name + " (" + std::to_string(id) +
                                  ") must be from 0 to " + std::to_string(size() - 1));
  }

  static std::string checked(const char* who, std::string_view text, Malformed malformed) {
    if (malformed == Malformed::refuse) {
      const std::size_t at = detail::first_malformed(text);
      if (at != text.npos)
        throw std::invalid_argument(std::string(who) + ": byte " + std::to_string(at) +
                                    " of the text begins no UTF-8 character");
    }
    std::string well_formed;
    detail::append_replaced(well_formed, text);
    return well_formed;
  }

  void place(std::vector<detail::AddedToken> added) {
    special_.resize(vocabulary_.size());
    std::vector<detail::AddedToken> first, second;
    for (detail::AddedToken& token : added) {
      special_[static_cast<std::size_t>(token.id)] = token.special;
      (token.normalized ? second : first).push_back(std::move(token));
    }
    first_ = detail::AddedTokens(std::move(first));
    second_ = detail::AddedTokens(std::move(second));
  }

  detail::AddedTokens first_, second_;  // not normalized, normalized: searched for in this order
  detail::PreTokenizer words_;
  detail::Vocabulary vocabulary_;
  std::vector<bool> special_;  // by id
};

namespace detail {

// Where a word has stood in a text before, and its ids in what it has been encoded to: text repeats
// itself. One slot a hash: what comes later replaces what was there.
class WordMemory {
 public:
  // None for short texts, which it would cost more than it saves.
  explicit WordMemory(std::size_t text_bytes) : slots_(text_bytes < 4096 ? 1 : 8192) {}

  // Appends the ids of a word to `out`, from there or by encode().
  void append(std::string_view word, std::vector<std::int32_t>& out, auto encode) {
    if (slots_.size() == 1 || word.size() > 64) return encode();
    Slot& slot = slots_[hash(word) & (slots_.size() - 1)];
    if (slot.word == word) {
      for (std::size_t i = 0; i < slot.count; ++i) out.push_back(out[slot.begin + i]);
      return;
    }
    const std::size_t begin = out.size();
    encode();
    slot = {word, begin, out.size() - begin};
  }

 private:
  struct Slot {
    std::string_view word;
    std::size_t begin = 0, count = 0;
  };

  static std::uint64_t hash(std::string_view word) { return hash_text(word, 1); }

  std::vector<Slot> slots_;
};

}  // namespace detail

inline std::vector<std::int32_t> Tokenizer::encode(std::string_view text,
                                                   const EncodeOptions& options) const {
  const char* who = "Tokenizer::encode";
  if (options.malformed == Malformed::keep)
    throw std::invalid_argument(std::string(who) + ": malformed (keep) must be refuse or replace");
  std::string well_formed;
  if (detail::first_malformed(text) != text.npos) {
    well_formed = checked(who, text, options.malformed);
    text = well_formed;
  }
  constexpr std::size_t most = std::numeric_limits<std::int32_t>::max();
  if (text.size() > most)
    throw std::invalid_argument(std::string(who) + ": bytes of the text (" +
                                std::to_string(text.size()) + ") must be at most " +
                                std::to_string(most));

  // Looking for the end of a run of blanks, an expression may step back over all of it.
  const std::size_t steps = 1'000'000 + 16 * text.size();
  detail::ExpressionSearch search(static_cast<std::uint32_t>(std::min(steps, most)));
  detail::Vocabulary::Workspace work;
  detail::WordMemory memory(text.size());
  std::vector<std::int32_t> ids;
  const auto words = [&](std::string_view part) {
    try {
      words_.split(search, part, [&](std::string_view word) {
        memory.append(word, ids, [&] { vocabulary_.append(word, work, ids); });
      });
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(std::string(who) + ": pre_tokenizer, in the text from byte " +
                               std::to_string(part.data() - text.data()) + " on: " + error.what());
    }
  };
  if (!options.added_tokens) {
    if (!text.empty()) words(text);
    return ids;
  }
  const auto token = [&](std::int32_t id) { ids.push_back(id); };
  first_.split(
      text, [&](std::string_view part) { second_.split(part, words, token); }, token);
  return ids;
}

}  // namespace dsv3
