//! What ends a continuation.

use std::fmt;

use crate::{Error, Result};

/// Why a continuation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// A token that ends a text came, such as EOS. It is the continuation's last token, and no part of its text.
    StopToken(i64),
    /// A stop string came. The text ends before it.
    StopString(String),
    /// As many tokens came as were asked for.
    MaxNewTokens,
    /// Prompt and continuation fill the model's context.
    ContextFull,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::StopToken(id) => write!(f, "stop token {id}"),
            StopReason::StopString(text) => write!(f, "stop string {text:?}"),
            StopReason::MaxNewTokens => f.write_str("as many new tokens as asked for"),
            StopReason::ContextFull => f.write_str("the context is full"),
        }
    }
}

/// What ends a continuation, as data: tokens, strings, and how many tokens there may be.
///
/// [`GenerateOptions::stop_rules`](super::GenerateOptions::stop_rules) makes them for a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopRules {
    tokens: Vec<i64>,
    strings: Vec<String>,
    max_new_tokens: usize,
    n_ctx: usize,
}

impl StopRules {
    /// Rules that end at any of `tokens` or `strings`, after `max_new_tokens`, and where prompt and continuation are `n_ctx` long.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for an empty string, or no new token at all.
    pub fn new(tokens: &[i64], strings: &[String], max_new_tokens: usize, n_ctx: usize) -> Result<Self> {
        if max_new_tokens == 0 {
            return Err(Error::option_value("max_new_tokens", 0, "it must be at least 1"));
        }
        if strings.iter().any(String::is_empty) {
            return Err(Error::option_value("stop_strings", "\"\"", "a stop string must have at least one character"));
        }
        let mut tokens = tokens.to_vec();
        tokens.sort_unstable();
        tokens.dedup();
        Ok(StopRules { tokens, strings: strings.to_vec(), max_new_tokens, n_ctx })
    }

    /// The tokens that end a continuation, each once, in ascending order.
    pub fn tokens(&self) -> &[i64] {
        &self.tokens
    }

    /// The strings that end a continuation.
    pub fn strings(&self) -> &[String] {
        &self.strings
    }

    /// How many tokens can follow a prompt of this length at most.
    pub fn room(&self, prompt: usize) -> usize {
        self.max_new_tokens.min(self.n_ctx.saturating_sub(prompt))
    }

    /// Whether a token is one that ends a continuation.
    pub fn is_stop_token(&self, id: i64) -> bool {
        self.tokens.binary_search(&id).is_ok()
    }

    /// Whether there is no room for another token after `prompt` tokens and `new` ones, and why.
    pub fn length_reached(&self, prompt: usize, new: usize) -> Option<StopReason> {
        if new >= self.max_new_tokens {
            Some(StopReason::MaxNewTokens)
        } else if prompt.saturating_add(new) >= self.n_ctx {
            Some(StopReason::ContextFull)
        } else {
            None
        }
    }

    /// A search for the stop strings, of one row.
    pub fn matcher(&self) -> StopStringMatcher {
        StopStringMatcher { strings: self.strings.clone(), held: String::new() }
    }
}

/// A search for stop strings in a text that comes in pieces.
///
/// It holds back what could be the beginning of a stop string. Which string is found, and where, does not depend on how
/// the text is cut into pieces: it is the first to be complete, the longest where several are complete at once.
///
/// ```
/// use tch_lens::generate::StopRules;
/// let mut matcher = StopRules::new(&[], &["\n\nQ:".into()], 100, 1024)?.matcher();
/// assert_eq!(matcher.push("Paris.\n"), ("Paris.".into(), None));
/// assert_eq!(matcher.push("\nA"), ("\n\nA".into(), None));
/// assert_eq!(matcher.push("\n\nQ: and"), ("".into(), Some("\n\nQ:".into())));
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopStringMatcher {
    strings: Vec<String>,
    held: String,
}

impl StopStringMatcher {
    /// Adds a piece of text. Gives what is certain to come before any stop string, and the stop string if one is complete.
    /// What follows a stop string is dropped.
    pub fn push(&mut self, piece: &str) -> (String, Option<String>) {
        self.held += piece;
        let found = self.strings.iter().filter_map(|string| {
            let start = self.held.find(string.as_str())?;
            Some((start + string.len(), start, string))
        });
        if let Some((_, start, string)) = found.min() {
            let (before, string) = (self.held[..start].to_string(), string.clone());
            self.held.clear();
            return (before, Some(string));
        }
        let begun = |start: &usize| self.strings.iter().any(|string| string.starts_with(&self.held[*start..]));
        let start = self.held.char_indices().map(|(start, _)| start).find(begun).unwrap_or(self.held.len());
        let certain = self.held.drain(..start).collect();
        (certain, None)
    }

    /// What was held back, as no text follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(strings: &[&str], max_new_tokens: usize, n_ctx: usize) -> Result<StopRules> {
        let strings: Vec<String> = strings.iter().map(|string| string.to_string()).collect();
        StopRules::new(&[7, 2, 7], &strings, max_new_tokens, n_ctx)
    }

    #[test]
    fn lengths_and_tokens() {
        let rules = rules(&[], 3, 8).unwrap();
        assert_eq!(rules.tokens(), [2, 7]);
        assert!(rules.is_stop_token(7) && !rules.is_stop_token(3));
        assert_eq!(rules.length_reached(4, 2), None);
        assert_eq!(rules.length_reached(4, 3), Some(StopReason::MaxNewTokens));
        assert_eq!(rules.length_reached(6, 2), Some(StopReason::ContextFull));
        assert_eq!(rules.length_reached(8, 0), Some(StopReason::ContextFull));
        assert_eq!((rules.room(4), rules.room(6), rules.room(9)), (3, 2, 0));
        let said = |error: Result<StopRules>| error.unwrap_err().to_string();
        assert_eq!(said(self::rules(&[], 0, 8)), "`max_new_tokens` is 0: it must be at least 1");
        let empty = "`stop_strings` is \"\": a stop string must have at least one character";
        assert_eq!(said(self::rules(&["a", ""], 1, 8)), empty);
    }

    /// Text and stop string, with the text cut at `cuts`.
    fn run(strings: &[&str], text: &str, cuts: &[bool]) -> (String, Option<String>) {
        let mut matcher = rules(strings, 1, 1).unwrap().matcher();
        let (mut shown, mut piece) = (String::new(), String::new());
        for (i, c) in text.chars().enumerate() {
            piece.push(c);
            if cuts.get(i).copied().unwrap_or(false) {
                let (text, found) = matcher.push(&std::mem::take(&mut piece));
                shown += &text;
                if found.is_some() {
                    return (shown, found);
                }
            }
        }
        let (text, found) = matcher.push(&piece);
        (shown + &text + &matcher.finish(), found)
    }

    #[test]
    fn strings_are_found_across_pieces() {
        let found = |strings: &[&str], text: &str| run(strings, text, &[true; 99]);
        assert_eq!(found(&["end"], "the en d ended"), ("the en d ".into(), Some("end".into())));
        assert_eq!(found(&["aab"], "aaab"), ("a".into(), Some("aab".into())));
        assert_eq!(found(&["b", "aab"], "xaab"), ("x".into(), Some("aab".into()))); // complete at once: the longest
        assert_eq!(found(&["abcd", "bc"], "abcd"), ("a".into(), Some("bc".into()))); // the first to be complete
        assert_eq!(found(&["é→"], "né→x"), ("n".into(), Some("é→".into())));
        assert_eq!(found(&["never"], "nev and neve"), ("nev and neve".into(), None));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn cuts_do_not_matter(
            strings in proptest::collection::vec("[abé]{1,4}", 1..4),
            text in "[abé]{0,20}",
            cuts in proptest::collection::vec(any::<bool>(), 20),
        ) {
            let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
            let whole = run(&strings, &text, &[]);
            prop_assert_eq!(&run(&strings, &text, &cuts), &whole);
            match &whole.1 {
                Some(found) => prop_assert!(text.starts_with(&(whole.0.clone() + found))),
                None => prop_assert_eq!(&whole.0, &text),
            }
        }
    }
}
