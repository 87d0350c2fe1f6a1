// Vocabulary: the bytes of every token, and how words become tokens.
#pragma once

#include <dsv3/io/added_tokens.hpp>
#include <dsv3/io/bpe.hpp>
#include <dsv3/io/byte_alphabet.hpp>
#include <dsv3/io/tokenizer_json.hpp>

namespace dsv3::detail {

// A byte-level vocabulary with its merges. Ids are those from 0 to size() - 1, each once, and every
// byte of UTF-8 has a token of its own, so that every text has ids and they give it back.
class Vocabulary {
 public:
  Vocabulary() = default;

  // Errors   std::invalid_argument through file.fail: duplicate texts or ids, holes, a missing
  //          byte, merges of unknown tokens.
  Vocabulary(const TokenizerJson& file, const std::vector<AddedToken>& added, bool ignore_merges)
      : ignore_merges_(ignore_merges) {
    const Names names(file);
    place(file, added, names);
    find_bytes(file);
    merges_ = read_merges(file, names);
    if (ignore_merges) find_words(file);
  }

  std::size_t size() const { return begin_.size() - 1; }

  // Of a token in [0, size()). What stands for no bytes, as special tokens do, is its own text.
  std::string_view bytes(std::int32_t id) const {
    const auto i = static_cast<std::size_t>(id);
    return std::string_view(bytes_).substr(begin_[i], begin_[i + 1] - begin_[i]);
  }

  // What encoding one word after another keeps.
  struct Workspace {
    Merger merger;
    std::vector<std::int32_t> word;
  };

  // Appends the ids of a word that is well-formed UTF-8, at most 2^31 - 1 bytes.
  void append(std::string_view word, Workspace& work, std::vector<std::int32_t>& out) const {
    if (ignore_merges_)
      if (const std::int32_t whole = find_word(word); whole >= 0) return out.push_back(whole);
    work.word.resize(word.size());
    for (std::size_t i = 0; i < word.size(); ++i)
      work.word[i] = of_byte_[static_cast<unsigned char>(word[i])];
    work.merger.merge(merges_, work.word.data(), word.size(), out);
  }

 private:
  // The index of each text of the vocabulary in file.tokens().
  class Names {
   public:
    explicit Names(const TokenizerJson& file) : file_(file) {
      const bool filled = fill_with_seed(seed_, [&](std::uint64_t seed) {
        seed_ = seed;
        table_ = ProbeTable<Entry>(file.tokens().size());
        for (std::size_t i = 0; i < file.tokens().size(); ++i) {
          const std::string_view text = file.text(file.tokens()[i]);
          if (find(text)) file.fail("model.vocab: duplicate token " + in_quotes(text));
          if (!table_.insert(hash_text(text, seed_), {static_cast<std::int32_t>(i)})) return false;
        }
        return true;
      });
      if (!filled) file.fail("model.vocab: tokens are made so that their hashes collide");
    }

    const TokenizerJson::Token* find(std::string_view text) const {
      const Entry* found = table_.find(hash_text(text, seed_), [&](const Entry& entry) {
        return file_.text(file_.tokens()[static_cast<std::size_t>(entry.index)]) == text;
      });
      return found ? &file_.tokens()[static_cast<std::size_t>(found->index)] : nullptr;
    }

   private:
    struct Entry {
      std::int32_t index = -1;
      explicit operator bool() const { return index >= 0; }
    };
    const TokenizerJson& file_;
    ProbeTable<Entry> table_;
    std::uint64_t seed_ = 1;
  };

  // Fills bytes_ and begin_.
  void place(const TokenizerJson& file, const std::vector<AddedToken>& added, const Names& names) {
    std::size_t n = file.tokens().size();
    for (const AddedToken& token : added) {
      const TokenizerJson::Token* same = names.find(token.content);
      if (same && same->id != token.id)
        file.fail("added token " + in_quotes(token.content) + ": id (" + std::to_string(token.id) +
                  ") must equal that in model.vocab (" + std::to_string(same->id) + ")");
      if (!same) ++n;
    }
    std::vector<std::string_view> texts(n);
    std::vector<bool> taken(n), verbatim(n);
    const auto take = [&](std::string_view text, std::int32_t id) {
      const auto i = static_cast<std::size_t>(id);
      if (i >= n)
        file.fail("token " + in_quotes(text) + ": id (" + std::to_string(id) +
                  ") must be below the number of tokens (" + std::to_string(n) +
                  "): ids have no holes");
      if (taken[i])
        file.fail("tokens " + in_quotes(texts[i]) + " and " + in_quotes(text) +
                  " have the same id (" + std::to_string(id) + ")");
      taken[i] = true;
      texts[i] = text;
    };
    for (const TokenizerJson::Token& token : file.tokens()) take(file.text(token), token.id);
    for (const AddedToken& token : added) {
      if (!names.find(token.content)) take(token.content, token.id);
      verbatim[static_cast<std::size_t>(token.id)] = true;
    }
    std::size_t total = 0;
    for (const std::string_view text : texts) total += text.size();
    bytes_.reserve(total);
    begin_.reserve(n + 1);
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t begin = bytes_.size();
      bytes_ += texts[i];
      const std::size_t kept =
          verbatim[i] ? bytes_.npos : bytes_of_characters(texts[i], bytes_.data() + begin);
      if (kept != bytes_.npos)
        bytes_.resize(begin + kept);
      else
        bytes_.replace(begin, bytes_.npos, texts[i]);
      begin_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    }
  }

  void find_bytes(const TokenizerJson& file) {
    for (std::int32_t& id : of_byte_) id = -1;
    char byte[2];
    for (const TokenizerJson::Token& token : file.tokens())
      if (token.bytes <= 2 && bytes_of_characters(file.text(token), byte) == 1)
        of_byte_[static_cast<unsigned char>(byte[0])] = token.id;
    for (unsigned b = 0; b < 256; ++b)
      if (of_byte_[b] < 0 && b != 0xC0 && b != 0xC1 && b <= 0xF4)  // others are in no UTF-8
        file.fail("model.vocab: no token for byte " + std::to_string(b));
  }

  static MergeTable read_merges(const TokenizerJson& file, const Names& names) {
    const auto name = [](std::size_t i) { return "model.merges[" + std::to_string(i) + "]"; };
    const auto id_of = [&](std::size_t i, std::string_view text) {
      const TokenizerJson::Token* token = names.find(text);
      if (!token) file.fail(name(i) + ": " + in_quotes(text) + " is not in model.vocab");
      return token->id;
    };
    const auto merge_of = [&](std::size_t i) {
      const TokenizerJson::Merge& merge = file.merges()[i];
      return MergeTable::Merge{id_of(i, file.left(merge)), id_of(i, file.right(merge)), 0,
                               id_of(i, file.both(merge))};
    };
    try {
      MergeTable merges(file.merges().size(), merge_of);
      if (!merges.ok()) file.fail("model.merges: merges are made so that their hashes collide");
      return merges;
    } catch (const MergeTable::Duplicate& twice) {
      const TokenizerJson::Merge& merge = file.merges()[twice.index];
      file.fail(name(twice.index) + ": duplicate merge of " + in_quotes(file.left(merge)) +
                " and " + in_quotes(file.right(merge)));
    }
  }

  struct Word {
    std::int32_t id = -1;
    explicit operator bool() const { return id >= 0; }
  };

  void find_words(const TokenizerJson& file) {
    std::string decoded;
    const bool filled = fill_with_seed(words_seed_, [&](std::uint64_t seed) {
      words_ = ProbeTable<Word>(file.tokens().size());
      for (const TokenizerJson::Token& token : file.tokens()) {
        const std::string_view text = file.text(token);
        decoded.resize(text.size());
        const std::size_t n = bytes_of_characters(text, decoded.data());
        if (n == decoded.npos || bytes(token.id) != std::string_view(decoded).substr(0, n))
          continue;
        if (!words_.insert(hash_text(bytes(token.id), seed), {token.id})) return false;
      }
      return true;
    });
    if (!filled) file.fail("model.vocab: tokens are made so that their hashes collide");
  }

  std::int32_t find_word(std::string_view word) const {
    const Word* found = words_.find(hash_text(word, words_seed_),
                                    [&](const Word& w) { return bytes(w.id) == word; });
    return found ? found->id : -1;
  }

  std::string bytes_;                       // of all tokens, by id
  std::vector<std::uint32_t> begin_ = {0};  // of each token, and the end of the last
  std::int32_t of_byte_[256] = {};
  MergeTable merges_;
  bool ignore_merges_ = false;
  ProbeTable<Word> words_;  // where merges are ignored
  std::uint64_t words_seed_ = 1;
};

}  // namespace dsv3::detail
