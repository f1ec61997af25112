package clevertap

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestBodyIsTheRecordsJoined(t *testing.T) {
	for _, list := range [][][]byte{
		{[]byte(`{"a":1}`)},
		{[]byte(`{"a":1}`), []byte(`{}`), []byte(`{"c":"long enough to be cut"}`)},
		{{}, []byte(`{}`), {}}, // no JSON, but no endless loop either
	} {
		want := append([]byte(`{"d":[`), bytes.Join(list, []byte(","))...)
		want = append(want, `]}`...)
		if got := bodyLength(list); got != int64(len(want)) {
			t.Errorf("length %d, want %d", got, len(want))
		}
		loan := &records{list: list}
		if err := iotest.TestReader(loan.body(int64(len(want))), want); err != nil {
			t.Error(err)
		}
		// A second reading starts from the first byte.
		if got, err := io.ReadAll(iotest.OneByteReader(loan.body(int64(len(want))))); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

func TestReleasedBodyReadsNothingMore(t *testing.T) {
	list := [][]byte{[]byte(`{"a":1}`)}
	loan := &records{list: list}
	half, whole := loan.body(bodyLength(list)), loan.body(bodyLength(list))
	if _, err := half.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(whole); err != nil {
		t.Fatal(err)
	}
	loan.release()
	if n, err := half.Read(make([]byte, 8)); n != 0 || !errors.Is(err, errReleased) {
		t.Errorf("half read: got %d, %v, want %v", n, err, errReleased)
	}
	if n, err := whole.Read(make([]byte, 8)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("wholly read: got %d, %v, want EOF", n, err)
	}
}
