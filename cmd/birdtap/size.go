package main

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes, written as an integer or with a unit: 8GiB, 512MiB, 1GB.
type Size int64

const (
	kibibyte Size = 1 << 10
	mebibyte Size = 1 << 20
	gibibyte Size = 1 << 30
	tebibyte Size = 1 << 40
)

// sizeUnits by their lower-case names. Ki, Mi, Gi and Ti are how Kubernetes writes them.
var sizeUnits = map[string]Size{
	"": 1, "b": 1,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
	"kib": kibibyte, "mib": mebibyte, "gib": gibibyte, "tib": tebibyte,
	"ki": kibibyte, "mi": mebibyte, "gi": gibibyte, "ti": tebibyte,
}

var errSize = errors.New("must be a whole number of bytes, or one with a unit: 8GiB, 512MiB, 1GB")

// UnmarshalText parses a size; see Size.
func (s *Size) UnmarshalText(text []byte) error {
	digits := strings.TrimRight(string(text), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit, ok := sizeUnits[strings.ToLower(strings.TrimSpace(string(text)[len(digits):]))]
	n, err := strconv.ParseUint(digits, 10, 63)
	if !ok || err != nil || Size(n) > math.MaxInt64/unit {
		return errSize
	}
	*s = Size(n) * unit
	return nil
}

// String writes the size with the largest binary unit that keeps it whole.
func (s Size) String() string {
	for _, u := range []struct {
		size Size
		name string
	}{{tebibyte, "TiB"}, {gibibyte, "GiB"}, {mebibyte, "MiB"}, {kibibyte, "KiB"}} {
		if s >= u.size && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
