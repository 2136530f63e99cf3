//! Makes bad bytes from good ones.

use backends::kernel::fake::Rng;

/// Makes cases from seeds.
pub struct Mutator {
    rng: Rng,
    seeds: Vec<Vec<u8>>,
    words: &'static [&'static str],
    bytes: Vec<u8>,
}

/// The longest case in bytes; the kernel's largest datagram is not longer.
const LONGEST: usize = 32 << 10;
/// Lengths and counts at which readers go wrong.
const EDGES: [u32; 14] =
    [0, 1, 2, 3, 4, 5, 7, 15, 16, 17, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];

impl Mutator {
    /// With these seeds.
    pub fn new(seed: u64, seeds: Vec<Vec<u8>>, words: &'static [&'static str]) -> Self {
        Self { rng: Rng::new(seed), seeds, words, bytes: Vec::new() }
    }

    /// The next case: one seed or a few, changed in one place or in many.
    pub fn case(&mut self) -> &[u8] {
        self.bytes.clear();
        // Texts are not joined; messages are.
        let pieces = if self.words.is_empty() { 1 + self.rng.below(4) } else { 1 };
        for _ in 0..pieces {
            let seed = self.rng.below(self.seeds.len());
            self.bytes.extend_from_slice(self.seeds.get(seed).map_or(&[], Vec::as_slice));
        }
        for _ in 0..1 << self.rng.below(4) {
            self.change();
        }
        self.bytes.truncate(LONGEST);
        &self.bytes
    }

    fn change(&mut self) {
        let len = self.bytes.len();
        let at = self.rng.below(len);
        // Short spans are more frequent than long ones.
        let most = 1 << self.rng.below(7);
        let span = at..(at + self.rng.below(most)).min(len);
        let noise = byte(&mut self.rng);
        match self.rng.below(10) {
            0 => self.write(at, &[1 << (noise & 7)], |old, bit| old ^ bit),
            1 => self.write(at, &[noise], |_, new| new),
            2 if self.rng.below(8) == 0 => self.bytes.truncate(at),
            2 | 3 => drop(self.bytes.drain(span)),
            4 => {
                let copy = self.bytes[span].to_vec();
                self.insert(at, &copy);
            }
            5 => {
                let seed = self.rng.below(self.seeds.len());
                let len = self.seeds.get(seed).map_or(0, Vec::len);
                let from = self.rng.below(len);
                let piece = from..(from + span.len()).min(len);
                let piece = self.seeds.get(seed).map_or_else(Vec::new, |seed| seed[piece].to_vec());
                match noise & 1 {
                    0 => self.insert(at, &piece),
                    _ => self.write(at, &piece, |_, new| new),
                }
            }
            6 | 7 if !self.words.is_empty() => {
                let word = self.words[self.rng.below(self.words.len())].as_bytes();
                self.insert(at, word);
            }
            6 => self.number(at & !3, 4),
            7 => self.number(at & !1, 2),
            8 => {
                let noise: Vec<_> = span.map(|_| byte(&mut self.rng)).collect();
                self.insert(at, &noise);
            }
            _ => self.write(at, &vec![noise; span.len()], |_, new| new),
        }
    }

    /// An edge value, or a length that is slightly wrong.
    fn number(&mut self, at: usize, width: usize) {
        let edge = EDGES[self.rng.below(EDGES.len())];
        let bytes = match self.rng.below(3) {
            0 => edge.to_be_bytes()[4 - width..].to_vec(),
            1 => edge.to_ne_bytes()[..width].to_vec(),
            _ => {
                let left = u32::try_from(self.bytes.len() - at.min(self.bytes.len())).unwrap_or(u32::MAX);
                left.wrapping_add(edge).wrapping_sub(4).to_ne_bytes()[..width].to_vec()
            }
        };
        self.write(at, &bytes, |_, new| new);
    }

    fn write(&mut self, at: usize, bytes: &[u8], mix: fn(u8, u8) -> u8) {
        for (old, new) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *old = mix(*old, *new);
        }
    }

    fn insert(&mut self, at: usize, bytes: &[u8]) {
        self.bytes.splice(at..at, bytes.iter().copied());
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the low byte is meant")]
fn byte(rng: &mut Rng) -> u8 {
    rng.next_u64() as u8
}
