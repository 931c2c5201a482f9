//! [`SpecialToken`]: the tokens that stand for no text of their own.

use super::special::content;
use super::Tokenizer;

/// A token that stands for no text of its own, such as BOS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its id.
    pub id: i64,
    /// How it is written, such as `<|endoftext|>`. Written out in a text, it is recognised.
    pub content: String,
    /// What it is used for. GPT-2's only one has three roles; an additional special token has none.
    pub roles: Vec<SpecialRole>,
}

/// What a special token is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpecialRole {
    /// It begins a text.
    Bos,
    /// It ends a text. There can be several, such as Llama 3's end of text and end of turn.
    Eos,
    /// It fills up a batch.
    Pad,
    /// It stands for what the vocabulary lacks.
    Unk,
}

impl Tokenizer {
    /// All special tokens, by ascending id: those with a role and additional ones.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, SpecialRole};
    /// let model = HookedTransformer::toy()?;
    /// let special = model.tokenizer()?.special_tokens();
    /// assert_eq!(special[0].content, "<|endoftext|>");
    /// assert_eq!(special[0].roles, [SpecialRole::Bos, SpecialRole::Eos]);
    /// assert_eq!(special[1].roles, [SpecialRole::Unk]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn special_tokens(&self) -> Vec<SpecialToken> {
        let mut ids: Vec<i64> = self
            .inner
            .tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(&id, _)| id.into())
            .collect();
        let pad = self.inner.special.pad.map(i64::from);
        let eos = self.eos_ids();
        ids.extend([self.bos_id(), pad, self.unk_id()].into_iter().flatten());
        ids.extend(&eos);
        ids.sort_unstable();
        ids.dedup();
        let token = |id: i64| {
            let roles = [
                (self.bos_id() == Some(id)).then_some(SpecialRole::Bos),
                eos.contains(&id).then_some(SpecialRole::Eos),
                (pad == Some(id)).then_some(SpecialRole::Pad),
                (self.unk_id() == Some(id)).then_some(SpecialRole::Unk),
            ];
            let content = content(&self.inner.tokenizer, u32::try_from(id).ok()?)?;
            Some(SpecialToken { id, content, roles: roles.into_iter().flatten().collect() })
        };
        ids.into_iter().filter_map(token).collect()
    }

    /// Every token that ends a text, [`eos_id`](Self::eos_id) first: a chat model's configuration can name several.
    pub fn eos_ids(&self) -> Vec<i64> {
        let special = &self.inner.special;
        special.eos.iter().chain(&special.more_eos).map(|&id| id.into()).collect()
    }

    /// The token that stands for words that the vocabulary does not have.
    pub fn unk_id(&self) -> Option<i64> {
        self.inner.unknowns.token().map(i64::from)
    }

    /// Whether a token is special.
    pub fn is_special(&self, id: i64) -> bool {
        self.special_tokens().iter().any(|token| token.id == id)
    }

    /// The id of the special token that is written so; `None` where there is none.
    pub fn special_token_id(&self, content: &str) -> Option<i64> {
        self.special_tokens().into_iter().find(|token| token.content == content).map(|token| token.id)
    }
}
