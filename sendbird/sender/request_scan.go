package sender

import (
	"bytes"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// scanner reads through one object or array of a body that is known to be valid.
type scanner struct {
	all jsontext.Value
	src bytes.Buffer     // over all: jsontext reads from such a buffer without copying
	dec jsontext.Decoder // over src
}

// scanners are used again: a decoder takes some kilobytes, and every profile needs a few.
var scanners = sync.Pool{New: func() any { return new(scanner) }}

// scan opens an object or an array.
func scan(all jsontext.Value) (*scanner, error) {
	s := scanners.Get().(*scanner)
	s.reset(all)
	if _, err := s.dec.ReadToken(); err != nil {
		return s, errMalformed
	}
	return s, nil
}

// reset begins anew. Names are not compared again.
func (s *scanner) reset(all jsontext.Value) {
	s.all, s.src = all, *bytes.NewBuffer(all)
	s.dec.Reset(&s.src, jsontext.AllowDuplicateNames(true))
}

// close lets go of the body.
func (s *scanner) close() {
	s.reset(nil)
	scanners.Put(s)
}

// value returns the next value as a slice of all: the decoder's own is valid for a
// moment only.
func (s *scanner) value() (jsontext.Value, error) {
	v, err := s.dec.ReadValue()
	if err != nil {
		return nil, errMalformed
	}
	end := int(s.dec.InputOffset())
	return s.all[end-len(v) : end], nil
}

// members calls fn for every member of an object, in order. The values are slices of it.
func members(object jsontext.Value, fn func(name string, v jsontext.Value) error) error {
	s, err := scan(object)
	defer s.close()
	if err != nil {
		return err
	}
	for s.dec.PeekKind() != jsontext.KindEndObject {
		token, err := s.dec.ReadToken()
		if err != nil {
			return errMalformed
		}
		name := token.String()
		v, err := s.value()
		if err != nil {
			return err
		}
		if err := fn(name, v); err != nil {
			return err
		}
	}
	return nil
}

// elements calls fn for every element of an array, counted from 0.
func elements(array jsontext.Value, fn func(i int, v jsontext.Value) error) error {
	s, err := scan(array)
	defer s.close()
	if err != nil {
		return err
	}
	for i := 0; s.dec.PeekKind() != jsontext.KindEndArray; i++ {
		v, err := s.value()
		if err != nil {
			return err
		}
		if err := fn(i, v); err != nil {
			return err
		}
	}
	return nil
}
