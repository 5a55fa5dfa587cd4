//! Each rule a peer can break after the upgrade, by name, and the close code that tells it.

/// A broken rule of RFC 6455, or of the limits announced for it. The connection ends; one counter per name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Violation {
    /// One of the three reserved bits is set and no extension gave it a meaning (5.2).
    ReservedBit,
    /// An opcode that RFC 6455 does not define (5.2).
    UnknownOpcode,
    /// A control frame without the final bit (5.5).
    FragmentedControl,
    /// A control frame of more than 125 bytes (5.5).
    OversizedControl,
    /// A frame of a client without a mask (5.1).
    Unmasked,
    /// A frame of a server with a mask (5.1); only clients see it.
    Masked,
    /// A length that would have fitted a shorter form (5.2).
    LengthNotMinimal,
    /// A length of 64 bits whose top bit is set (5.2).
    LengthTopBit,
    /// A continuation while no message is open (5.4).
    ContinuationWithoutStart,
    /// A text or binary frame while a fragmented message is open (5.4).
    StartInsideMessage,
    /// A Close frame with a body of one byte (5.5.1).
    CloseBodyTooShort,
    /// A close code that may not travel (7.4).
    CloseCodeInvalid,
    /// A close reason that is not UTF-8 (5.5.1).
    CloseReasonNotUtf8,
    /// A text message that is not UTF-8 (8.1).
    TextNotUtf8,
    /// A text message where only binary ones belong.
    TextNotAccepted,
    /// A binary message where only text belongs.
    BinaryNotAccepted,
    /// A message longer than the limit, its fragments together.
    MessageTooLarge,
    /// A message of more fragments than the limit.
    TooManyFragments,
    /// A compressed message that is no DEFLATE stream (RFC 7692 7.2.2).
    DeflateInvalid,
}

impl Violation {
    /// Every rule, in the order of [`Violation::index`].
    pub const ALL: [Self; 19] = [
        Self::ReservedBit,
        Self::UnknownOpcode,
        Self::FragmentedControl,
        Self::OversizedControl,
        Self::Unmasked,
        Self::Masked,
        Self::LengthNotMinimal,
        Self::LengthTopBit,
        Self::ContinuationWithoutStart,
        Self::StartInsideMessage,
        Self::CloseBodyTooShort,
        Self::CloseCodeInvalid,
        Self::CloseReasonNotUtf8,
        Self::TextNotUtf8,
        Self::TextNotAccepted,
        Self::BinaryNotAccepted,
        Self::MessageTooLarge,
        Self::TooManyFragments,
        Self::DeflateInvalid,
    ];

    /// Position in [`Violation::ALL`]: the slot of its counter.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self as u8)
    }

    /// The name under which it is counted.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReservedBit => "reserved_bit",
            Self::UnknownOpcode => "unknown_opcode",
            Self::FragmentedControl => "fragmented_control",
            Self::OversizedControl => "oversized_control",
            Self::Unmasked => "unmasked",
            Self::Masked => "masked",
            Self::LengthNotMinimal => "length_not_minimal",
            Self::LengthTopBit => "length_top_bit",
            Self::ContinuationWithoutStart => "continuation_without_start",
            Self::StartInsideMessage => "start_inside_message",
            Self::CloseBodyTooShort => "close_body_too_short",
            Self::CloseCodeInvalid => "close_code_invalid",
            Self::CloseReasonNotUtf8 => "close_reason_not_utf8",
            Self::TextNotUtf8 => "text_not_utf8",
            Self::TextNotAccepted => "text_not_accepted",
            Self::BinaryNotAccepted => "binary_not_accepted",
            Self::MessageTooLarge => "message_too_large",
            Self::TooManyFragments => "too_many_fragments",
            Self::DeflateInvalid => "deflate_invalid",
        }
    }

    /// What the Close frame says (RFC 6455 7.4.1).
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::TextNotUtf8 | Self::CloseReasonNotUtf8 | Self::DeflateInvalid => 1007,
            Self::TextNotAccepted | Self::BinaryNotAccepted => 1003,
            Self::MessageTooLarge | Self::TooManyFragments => 1009,
            _ => 1002,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter found by index belongs to the rule of that name, and no two rules share a name.
    #[test]
    fn every_rule_stands_at_its_index_under_a_name_of_its_own() {
        for (index, rule) in Violation::ALL.into_iter().enumerate() {
            assert_eq!(rule.index(), index);
            assert_eq!(Violation::ALL.iter().filter(|other| other.name() == rule.name()).count(), 1);
        }
        assert_eq!(Violation::DeflateInvalid.index() + 1, Violation::ALL.len());
    }
}
