//! Which heads continue a repeated sequence, and how? Attention by distance on random words that are said twice.
//!
//! Prints, for each head and for spans of 10 and 16 words, the distance that the words of the second time look back most, and how
//! much. What will be seen on the toy model: the distances of layer 1 grow with the span, 5 and then 11, so these heads
//! find the earlier occurrence of a word, and look at the fifth word after it. Those of L0H1 and L0H3 stay 5 and 4: they carry the word
//! five and the word four places before to each position. So the position that layer 1 finds holds the word itself, by which it is
//! found, and the word that followed it, which is the answer. The textbook's induction head looks at the answer itself; the
//! last column, its score, stays below 0.1 in layer 1.
//!
//! ```text
//! cargo run --release --example induction_heads
//! ```

use tch_lens::heads::{induction_scores, RepeatedTokens};
use tch_lens::{HookedTransformer, Result};

fn main() -> Result<()> {
    tch_lens::tune_allocator();
    let model = HookedTransformer::toy()?;
    let words = words(&model)?;
    let (short, long) = (distances(&model, &words, 10)?, distances(&model, &words, 16)?);
    let scores = induction_scores(&model, RepeatedTokens::new().len(10).rows(16).among(words))?; // [layer, head]
    println!("head   10 words        16 words        induction score");
    for (i, label) in model.all_head_labels().iter().enumerate() {
        let cell = |(back, share): (i64, f64)| format!("{back:>2} back {:>3.0} %", 100.0 * share);
        let score = scores.view(-1).double_value(&[i as i64]);
        println!("{label}   {}     {}     {score:.2}", cell(short[i]), cell(long[i]));
    }
    Ok(())
}

/// The ids of all words in lower case, with the space before them.
fn words(model: &HookedTransformer) -> Result<Vec<i64>> {
    let mut words = Vec::new();
    for id in 0..model.config().d_vocab as i64 {
        let text = model.to_single_str_token(id)?;
        let word = text.strip_prefix(' ').unwrap_or_default();
        if word.len() > 1 && word.chars().all(char::is_lowercase) {
            words.push(id);
        }
    }
    Ok(words)
}

/// For each head, the distance that the second half of repeated words looks back most, and the mean attention there.
fn distances(model: &HookedTransformer, words: &[i64], len: usize) -> Result<Vec<(i64, f64)>> {
    let tokens = RepeatedTokens::new().len(len).rows(16).among(words).tokens(model)?; // BOS, then the words twice
    let (_, cache) = model.run_with_cache_of(tokens, "pattern")?;
    let patterns = cache.stack_activation("pattern", None)?; // [layer, batch, head, query, key]
    let patterns = patterns.mean_dim([1i64].as_slice(), false, None).flatten(0, 1); // [layer * head, query, key]
    let first = len as i64 + 2; // the second word of the second time
    let mut best = vec![(0, 0.0); patterns.size()[0] as usize];
    for back in 0..first {
        // Entry i is the attention from position i + back to position i.
        let diagonal = patterns.diagonal(-back, 1, 2).slice(1, first - back, None, 1);
        let shares = Vec::<f64>::try_from(diagonal.mean_dim([1i64].as_slice(), false, tch_lens::tch::Kind::Double))?;
        for (best, share) in best.iter_mut().zip(shares) {
            if share > best.1 {
                *best = (back, share);
            }
        }
    }
    Ok(best)
}
