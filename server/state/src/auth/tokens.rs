//! Simple tokens: random letters that stand for a user until they are not used for a while. They
//! are made by entries, so each member knows them, and lie in memory only: each member's own clock
//! ends them.

use std::{collections::HashMap, time::Duration};

/// How long an unused token is good for, unless set otherwise.
pub const TOKEN_TTL: Duration = Duration::from_secs(300);
/// How often tokens that have ended are thrown away, at most.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The tokens that are good. `now` is time since any fixed origin, always the same one.
pub struct Tokens {
    ttl: Duration,
    enabled: bool,
    tokens: HashMap<String, Token>,
    swept: Duration,
}

struct Token {
    user: String,
    /// The last moment at which it is good.
    until: Duration,
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Tokens {
    pub(crate) fn new(enabled: bool) -> Self {
        Self {
            ttl: TOKEN_TTL,
            enabled,
            tokens: HashMap::new(),
            swept: Duration::ZERO,
        }
    }

    /// Sets how long an unused token is good for; tokens that are there keep their time.
    pub fn set_ttl(&mut self, ttl: Duration) {
        self.ttl = ttl;
    }

    /// Without authentication there are no tokens.
    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        if !enabled {
            self.tokens.clear();
        }
    }

    pub(crate) fn assign(&mut self, token: &str, user: &str, now: Duration) {
        if !self.enabled {
            return;
        }
        if now >= self.swept + SWEEP_EVERY {
            self.swept = now;
            self.tokens.retain(|_, token| token.until >= now);
        }
        let token = (token.to_owned(), self.token(user, now));
        self.tokens.extend([token]);
    }

    fn token(&self, user: &str, now: Duration) -> Token {
        Token {
            user: user.to_owned(),
            until: now + self.ttl,
        }
    }

    /// Who a token stands for; its time begins anew.
    pub fn user_of(&mut self, token: &str, now: Duration) -> Option<String> {
        let ttl = self.ttl;
        let token = self.tokens.get_mut(token).filter(|t| t.until >= now)?;
        token.until = now + ttl;
        Some(token.user.clone())
    }

    /// Ends all tokens of a user.
    pub(crate) fn invalidate(&mut self, user: &str) {
        self.tokens.retain(|_, token| token.user != user);
    }

    /// How many there are, also such that have ended a moment ago.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// The entry that made a simple token; `None` for what cannot be one. A member that has not yet
/// applied that entry cannot know the token.
pub fn token_index(token: &str) -> Option<u64> {
    let (_, index) = token.split_once('.')?;
    let digits = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| index.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_ends_when_it_is_not_used() {
        let mut tokens = Tokens::new(true);
        tokens.assign("x.7", "ann", at(0));
        tokens.assign("y.8", "bob", at(0));
        assert_eq!(tokens.user_of("x.7", at(300)).as_deref(), Some("ann"));
        assert_eq!(tokens.user_of("x.7", at(600)).as_deref(), Some("ann"));
        assert_eq!(tokens.user_of("y.8", at(301)), None);
        assert_eq!(tokens.user_of("z.9", at(0)), None);
        tokens.assign("z.9", "bob", at(700));
        assert_eq!(tokens.len(), 2);
        tokens.set_ttl(at(2));
        assert_eq!(tokens.user_of("z.9", at(1000)).as_deref(), Some("bob"));
        assert_eq!(tokens.user_of("z.9", at(1003)), None);
    }

    #[test]
    fn tokens_end_with_their_user_and_with_authentication() {
        let mut tokens = Tokens::new(false);
        tokens.assign("x.7", "ann", at(0));
        assert!(tokens.is_empty());
        tokens.set_enabled(true);
        tokens.assign("x.7", "ann", at(0));
        tokens.assign("y.8", "bob", at(0));
        tokens.invalidate("ann");
        assert_eq!(tokens.user_of("x.7", at(1)), None);
        assert_eq!(tokens.user_of("y.8", at(1)).as_deref(), Some("bob"));
        tokens.set_enabled(false);
        tokens.set_enabled(true);
        assert_eq!(tokens.user_of("y.8", at(1)), None);
    }

    #[test]
    fn a_simple_token_names_its_entry() {
        for (token, index) in [
            ("abc.7", Some(7)),
            (".0", Some(0)),
            ("abc", None),
            ("abc.", None),
            ("abc.+7", None),
            ("abc.x", None),
            ("a.b.7", None),
            ("abc.18446744073709551616", None),
        ] {
            assert_eq!(token_index(token), index, "{token}");
        }
    }
}
