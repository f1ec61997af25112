package ingest

import (
	"fmt"
	"strings"
	"testing"
)

// The classes of the public JSON parser suites, generated: what must be refused,
// what must be taken, and what a parser may decide, with what this one decided.

func TestNumbers(t *testing.T) {
	t.Parallel()
	for _, n := range numbers([]string{"0", "1", "9", "10", "1234567890"}, []string{"", ".0", ".5", ".123456789012345678901"}, []string{"", "e0", "E1", "e+9", "e-9", "e400", "e-400"}) {
		checkTaken(t, n)
		checkTaken(t, "-"+n)
	}
	wrong := []string{
		"+1", "01", "-01", "00", "-", "+", ".", ".5", "-.5", "1.", "1.e1", "1e", "1e+", "1E-", "1e1.5", "1.2.3", "--1", "1-2",
		"0x1F", "0b1", "0o7", "1_000", "1,000", "1a", "NaN", "nan", "-NaN", "Inf", "Infinity", "-Infinity", "1e1e1", "0e", "٣", "１", "1 000", "1.5f", "∞",
	}
	for _, n := range wrong {
		checkRefused(t, n)
	}
}

// numbers puts the three parts together in every way.
func numbers(whole, fraction, exponent []string) []string {
	var list []string
	for _, w := range whole {
		for _, f := range fraction {
			for _, e := range exponent {
				list = append(list, w+f+e)
			}
		}
	}
	return list
}

func TestLiterals(t *testing.T) {
	t.Parallel()
	for _, word := range []string{"true", "false", "null"} {
		checkTaken(t, word)
		for cut := 1; cut < len(word); cut++ {
			checkRefused(t, word[:cut])
		}
		for _, wrong := range []string{strings.ToUpper(word), strings.ToUpper(word[:1]) + word[1:], word + "x", "'" + word + "'"} {
			checkRefused(t, wrong)
		}
	}
	for _, wrong := range []string{"undefined", "None", "nil", "a", "*", "#", "$x", "@"} {
		checkRefused(t, wrong)
	}
}

func TestStrings(t *testing.T) {
	t.Parallel()
	for _, c := range `"\/bfnrt` {
		checkTaken(t, `"\`+string(c)+`"`)
	}
	for c := range rune(0x80) {
		if !strings.ContainsRune(`"\/bfnrtu`, c) {
			checkRefused(t, `"\`+string(c)+`"`)
		}
		raw := `"` + string(c) + `"`
		switch {
		case c < 0x20, c == '"', c == '\\':
			checkRefused(t, raw)
		default:
			checkTaken(t, raw)
		}
		checkTaken(t, fmt.Sprintf(`"\u%04x"`, c))
		checkTaken(t, fmt.Sprintf(`"\u%04X"`, c))
	}
	for _, s := range []string{"é", "\u2028", "\ufeff", "\ufffe", "\U0001f600", "\U0010ffff"} {
		checkTaken(t, `"`+s+`"`)
	}
	for _, s := range []string{`\u`, `\u0`, `\u00`, `\u004`, `\u004g`, `\U0041`, `\u{41}`, `\x41`, `\u-041`, `\u+041`, `\u 041`} {
		checkRefused(t, `"`+s+`"`)
	}
	for _, s := range []string{`"`, `"a`, `a"`, `'a'`, "`a`", `"a" "b"`, `"\"`, `"\u0041`, "\"\x00\"", "“a”"} {
		checkRefused(t, s)
	}
}

// TestSurrogates: the standard leaves lone ones open; here they are refused.
func TestSurrogates(t *testing.T) {
	t.Parallel()
	for _, s := range []string{`\ud83d\ude00`, `\uD800\uDC00`, `\udbff\udfff`, `\ud7ff\ue000`} {
		checkTaken(t, `"`+s+`"`)
	}
	for _, s := range []string{`\ud800`, `\udc00`, `\ud800x`, `\ud800\n`, `\ud800\u0041`, `\ud800\ud800`, `\udc00\ud800`, `\ud800\udc0`, `\udfff\udfff`} {
		checkRefused(t, `"`+s+`"`)
	}
}

// TestEncodings: UTF-8 and nothing else.
func TestEncodings(t *testing.T) {
	t.Parallel()
	for b := 0x80; b < 0x100; b++ {
		checkRefused(t, "\""+string([]byte{byte(b)})+"\"")      // a byte alone
		checkRefused(t, "\"a"+string([]byte{byte(b), 'a'})+`"`) // in between
		checkRefused(t, string([]byte{byte(b)}))                // outside a string
	}
	for _, s := range []string{
		"\xc0\x80", "\xc0\xaf", "\xc1\xbf", "\xe0\x80\xaf", "\xe0\x9f\xbf", "\xf0\x80\x80\xaf", "\xf8\x88\x80\x80\x80", // overlong
		"\xed\xa0\x80", "\xed\xbf\xbf", "\xed\xa0\x80\xed\xb0\x80", // surrogates
		"\xf4\x90\x80\x80", "\xff\xff", "\xe2\x82", "\xf0\x9f\x98", // beyond Unicode, cut
	} {
		checkRefused(t, `"`+s+`"`)
		checkMalformed(t, withProperty(`"`+s+`":1`))
	}
	for _, order := range [][2]int{{0, 1}, {1, 0}} { // UTF-16
		var b []byte
		for _, c := range []byte(good) {
			pair := [2]byte{}
			pair[order[0]] = c
			b = append(b, pair[:]...)
		}
		checkMalformed(t, string(b))
	}
	checkMalformed(t, "\ufeff"+good)
}

func TestStructures(t *testing.T) {
	t.Parallel()
	for _, v := range []string{`[]`, `{}`, `[[]]`, `[{}]`, `{"a":{}}`, `[null]`, `[1,2]`, `{"":0}`, `{"a":1,"b":2}`, "[\t\r\n ]", "{\t\r\n }", `{"a\u0000":1}`, `[[[[]],[]],[]]`} {
		checkTaken(t, v)
	}
	for _, v := range []string{
		``, `[`, `]`, `{`, `}`, `[}`, `{]`, `[[`, `]]`, `[]]`, `{}}`, `[,]`, `[,1]`, `[1,]`, `[1,,2]`, `[1 2]`, `[1:2]`, `[1;2]`, `(1)`, `<1>`,
		`{,}`, `{"a"}`, `{"a":}`, `{:1}`, `{"a" 1}`, `{"a"::1}`, `{"a":1,}`, `{"a":1,,"b":2}`, `{"a":1 "b":2}`, `{a:1}`, `{'a':1}`, `{1:1}`, `{null:1}`, `{[]:1}`, `{"a":1:2}`, `{"a","b"}`, `{"a"=1}`,
		`[1]/**/`, `/**/[1]`, `[1//]`, "[1#\n]", "[\v]", "[\f]", "[\u00a0]", "[\u2060]", "[\u0085]", "[\x00]", `\n`, `[\u0031]`, `[<null>]`, `...`, `--`, `[1]x`, `{"a":1}#`,
		`{"a":1,"a":1}`, `{"a":1,"\u0061":2}`, `{"a":{"b":1,"b":1}}`, `[{"":0,"":0}]`,
	} {
		checkRefused(t, v)
	}
}

func TestDepth(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]int{
		`1`: 0, `"[["`: 0, `[]`: 1, `{}`: 1, `[[],[]]`: 2, `{"a":[{}]}`: 3, `{"[[[":1}`: 1, `["\"[[[", "\\", []]`: 2, `[{"}":[]}]`: 3,
	} {
		if got := depth([]byte(value)); got != want {
			t.Errorf("%s: got %d, want %d", value, got, want)
		}
	}
}

// TestEveryCutIsRefused: no beginning of a body passes for the whole.
func TestEveryCutIsRefused(t *testing.T) {
	t.Parallel()
	for _, body := range []string{good, `[` + good + `]`, `{"d":[` + good + `,null,"\u0041",{"a":[1.5e3,true]}]}`} {
		for cut := range len(body) {
			checkMalformed(t, body[:cut])
		}
	}
}

// checkTaken tries value in all places where values may stand.
func checkTaken(t *testing.T, value string) {
	t.Helper()
	for _, body := range places(value) {
		if err := parse(body); err != nil {
			t.Errorf("refused: %q", body)
		}
	}
}

func checkRefused(t *testing.T, value string) {
	t.Helper()
	for _, body := range places(value) {
		checkMalformed(t, body)
	}
}

func checkMalformed(t *testing.T, body string) {
	t.Helper()
	if err := parse(body); err == nil {
		t.Errorf("taken: %q", body)
	}
}

func places(value string) []string {
	return []string{
		`{"x":` + value + `}`, `[` + `1,` + value + `]`, `{"d":[],"x":` + value + `}`, `{"d":[1,` + value + `]}`,
		withTarget(value), withProperty(`"n":[{"x":` + value + `}]`), `{"evtData":` + value + `}`, `{"identity":` + value + `}`,
	}
}

func parse(body string) error {
	var p parser
	return p.parse([]byte(body), func(*record) error { return nil })
}
