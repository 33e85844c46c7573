package smarthost

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// asciiDomain returns a domain as the DNS knows it: in lower case, each U-label
// as its A-label (RFC 5890 section 2.3.2.1). A domain that is ASCII already is
// only put in lower case.
//
// It makes no Unicode normalization, for which the program has no tables. exact
// says that none can be needed: then the result is the only one possible. Else a
// DNS that knows nothing of it may be right or may have been asked for the
// wrong name.
func asciiDomain(domain string) (name string, exact bool, err error) {
	// The full stops that UTS 46 section 4 separates labels at.
	domain = strings.NewReplacer("\u3002", ".", "\uff0e", ".", "\uff61", ".").Replace(domain)
	labels := strings.Split(strings.ToLower(domain), ".")
	exact = true
	for i, label := range labels {
		if isASCII(label) {
			if len(label) > 63 {
				return "", false, errLabel
			}
			continue
		}
		if !utf8.ValidString(label) {
			return "", false, errors.New("it is not UTF-8")
		}
		for _, r := range label {
			if !inLabel(r) {
				return "", false, fmt.Errorf("%q has no place in a domain", r)
			}
			exact = exact && composed(r)
		}
		labels[i] = "xn--" + punycode([]rune(label))
		if len(labels[i]) > 63 {
			return "", false, errLabel
		}
	}
	name = strings.Join(labels, ".")
	if len(name) > 253 {
		return "", false, errors.New("it is longer than 253 octets")
	}
	return name, exact, nil
}

var errLabel = errors.New("a label is longer than 63 octets")

// inLabel reports whether r can be in a U-label, roughly as RFC 5892 has it:
// letters that have no lower case of their own, marks, digits and the hyphen.
func inLabel(r rune) bool {
	if r < utf8.RuneSelf {
		return 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-'
	}
	return unicode.In(r, unicode.Ll, unicode.Lo, unicode.Lm, unicode.M, unicode.Nd) || r == 0xb7
}

// composed reports whether r is a character that normalization leaves alone, next
// to others of the kind: the alphabets and scripts of most names.
func composed(r rune) bool {
	switch {
	case r < utf8.RuneSelf, 0xdf <= r && r <= 0x17f && r != 0x13f && r != 0x140 && r != 0x149 && r != 0x17f:
		return true // Latin
	case 0x3ac <= r && r <= 0x3ce, 0x430 <= r && r <= 0x45f:
		return true // Greek, Cyrillic
	case 0x5d0 <= r && r <= 0x5ea, 0x620 <= r && r <= 0x64a:
		return true // Hebrew, Arabic
	case 0x3041 <= r && r <= 0x3096, 0x30a1 <= r && r <= 0x30fa, r == 0x30fc:
		return true // Hiragana, Katakana
	case 0x4e00 <= r && r <= 0x9fff, 0xac00 <= r && r <= 0xd7a3:
		return true // Han, Hangul
	}
	return false
}

// punycode encodes a label (RFC 3492 section 6.3), without its prefix.
func punycode(label []rune) string {
	const (
		base, tMin, tMax  = 36, 1, 26
		skew, damp        = 38, 700
		firstBias, firstN = 72, 128
		digits            = "abcdefghijklmnopqrstuvwxyz0123456789"
	)
	var out []byte
	for _, r := range label {
		if r < firstN {
			out = append(out, byte(r))
		}
	}
	basic := len(out)
	done := basic
	if basic > 0 {
		out = append(out, '-')
	}
	n, delta, bias := rune(firstN), 0, firstBias
	for done < len(label) {
		next := rune(unicode.MaxRune)
		for _, r := range label {
			if r >= n && r < next {
				next = r
			}
		}
		delta += int(next-n) * (done + 1)
		n = next
		for _, r := range label {
			if r < n {
				delta++
			}
			if r != n {
				continue
			}
			q := delta
			for k := base; ; k += base {
				t := min(max(k-bias, tMin), tMax)
				if q < t {
					break
				}
				out = append(out, digits[t+(q-t)%(base-t)])
				q = (q - t) / (base - t)
			}
			out = append(out, digits[q])
			// The bias for the next one (section 6.1).
			if done == basic {
				delta /= damp
			} else {
				delta /= 2
			}
			delta += delta / (done + 1)
			bias = 0
			for ; delta > (base-tMin)*tMax/2; bias += base {
				delta /= base - tMin
			}
			bias += (base - tMin + 1) * delta / (delta + skew)
			delta = 0
			done++
		}
		delta++
		n++
	}
	return string(out)
}
