package dsn

import "strings"

// ValidStatus reports whether s is an enhanced status code (RFC 3463 section 2):
// class 2, 4 or 5, and two numbers of at most three digits without leading zeros.
func ValidStatus(s string) bool {
	class, rest, _ := strings.Cut(s, ".")
	subject, detail, ok := strings.Cut(rest, ".")
	return ok && (class == "2" || class == "4" || class == "5") && statusNumber(subject) && statusNumber(detail)
}

func statusNumber(s string) bool {
	if s == "" || len(s) > 3 || (len(s) > 1 && s[0] == '0') {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// StatusClass returns the class of a valid status: 2 for success, 4 for
// temporary, 5 for permanent failure. It returns 0 when s is not valid.
func StatusClass(s string) int {
	if !ValidStatus(s) {
		return 0
	}
	return int(s[0] - '0')
}

// statusTexts says in plain words what a status means, without its class
// (RFC 3463 section 3 and the IANA registry).
var statusTexts = map[string]string{
	"1.0":  "there is a problem with the recipient's address",
	"1.1":  "there is no such mailbox",
	"1.2":  "the domain of the address does not exist or takes no mail",
	"1.3":  "the address is not written correctly",
	"1.4":  "the address fits more than one recipient",
	"1.5":  "the address is valid",
	"1.6":  "the mailbox has moved and left no new address",
	"1.7":  "the sender's address is not written correctly",
	"1.8":  "the domain of the sender's address does not exist or takes no mail",
	"1.10": "the domain of the address takes no mail",
	"2.0":  "there is a problem with the mailbox",
	"2.1":  "the mailbox takes no mail",
	"2.2":  "the mailbox is full",
	"2.3":  "the message is larger than the mailbox allows",
	"2.4":  "the mailing list could not be expanded",
	"3.0":  "there is a problem with the mail system",
	"3.1":  "the mail system has no space left",
	"3.2":  "the mail system takes no mail at present",
	"3.3":  "the mail system lacks a feature that the message needs",
	"3.4":  "the message is larger than the mail system allows",
	"3.5":  "the mail system is not set up correctly",
	"4.0":  "there is a problem with the network or the route",
	"4.1":  "the host did not answer",
	"4.2":  "the connection was lost",
	"4.3":  "a directory or name server could not be asked",
	"4.4":  "no route to the host was found",
	"4.5":  "the mail system is too busy",
	"4.6":  "the message goes round in a loop",
	"4.7":  "the message was too long on its way",
	"5.0":  "the mail systems did not understand each other",
	"5.1":  "a command was refused",
	"5.2":  "a command was not understood",
	"5.3":  "the message has too many recipients",
	"5.4":  "an argument of a command was refused",
	"5.5":  "the mail systems speak different versions of the protocol",
	"6.0":  "there is a problem with the content of the message",
	"6.1":  "the recipient's system does not take this kind of content",
	"6.2":  "the content would have to be converted, which is forbidden",
	"6.3":  "the content would have to be converted, which is not supported",
	"6.4":  "the content was converted with losses",
	"6.5":  "the content could not be converted",
	"6.7":  "an address with non-ASCII characters is not supported",
	"7.0":  "the message was refused by a security rule",
	"7.1":  "the recipient's system refused the message by its own rules",
	"7.2":  "the sender may not write to this mailing list",
	"7.3":  "a security conversion is not possible",
	"7.4":  "a security feature is not supported",
	"7.5":  "the message could not be encrypted or decrypted",
	"7.6":  "the encryption is not supported",
	"7.7":  "the message failed an integrity check",
	"7.8":  "the login to the mail system was refused",
	"7.9":  "the login method is too weak",
	"7.10": "encryption is required",
	"7.11": "the login needs encryption",
	"7.20": "the message has no valid DKIM signature",
	"7.23": "the message failed the SPF check",
	"7.25": "the sending host has no valid reverse name",
	"7.26": "the message failed the sender authentication checks",
	"7.27": "the domain of the sender's address takes no mail",
}

// StatusText says in a few plain words, without a final stop, what a status
// means. An unknown detail gets the text of its subject, anything else a general
// one: the result is never empty.
func StatusText(s string) string {
	if ValidStatus(s) && s[0] != '2' {
		subject, _, _ := strings.Cut(s[2:], ".")
		for _, key := range []string{s[2:], subject + ".0"} {
			if text := statusTexts[key]; text != "" {
				return text
			}
		}
	}
	switch StatusClass(s) {
	case 2:
		return "the message was accepted"
	case 4:
		return "the message could not be delivered for now"
	}
	return "the message could not be delivered"
}

// statusFor returns s when it is a status that a report of kind k may hold, else
// the general status of that kind. A failure can have a temporary status: that of
// the last attempt before time ran out (RFC 3464 section 2.3.4).
func statusFor(k Kind, s string) string {
	class := StatusClass(s)
	switch k {
	case Failed:
		if class == 4 || class == 5 {
			return s
		}
		return "5.0.0"
	case Delayed:
		if class == 4 {
			return s
		}
		return "4.0.0"
	}
	if class == 2 {
		return s
	}
	return "2.0.0"
}

// advice says what the sender of a failed message can do about it, or "" where
// nothing can be said beyond the reason.
func advice(status string) string {
	key := status[2:]
	switch {
	case key == "1.7" || key == "1.8" || key == "7.27" || key == "7.8":
		return "Ask the postmaster of this host to correct its mail settings."
	case key == "2.2":
		return "Try again in some days, or reach the recipient in another way."
	case key == "2.3" || key == "3.4":
		return "Send a smaller message, or the large part of it in another way."
	case strings.HasPrefix(key, "1."), key == "2.1":
		return "Check the address. If it is right, reach the recipient in another way."
	case key == "4.6":
		return "Tell the postmaster of the recipient's domain: an address there leads back to itself."
	case status[0] == '4', strings.HasPrefix(key, "4."):
		return "Send the message again later, or reach the recipient in another way."
	case strings.HasPrefix(key, "7."), strings.HasPrefix(key, "6."):
		return "Change what was refused, or reach the recipient in another way."
	}
	return ""
}
