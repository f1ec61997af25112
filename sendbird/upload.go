package sendbird

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"regexp"
)

// maxUploadAnswer bounds the answer of the upload host, in bytes.
const maxUploadAnswer = 64 << 10

// UploadError is an upload that the host refused.
type UploadError struct {
	Status int
	// Code is the host's own word, such as AccessDenied or EntityTooLarge, "" if
	// it gave none.
	Code string
}

func (e *UploadError) outcome() Outcome {
	if e.Status >= 500 || e.Status == http.StatusTooManyRequests {
		return Later
	}
	return Refused
}

func (e *UploadError) Error() string {
	text := fmt.Sprintf("upload targets file: the upload host answered %d", e.Status)
	if e.Code != "" {
		text += " " + e.Code
	}
	switch {
	case e.Status == http.StatusForbidden:
		text += ": the presigned URL has expired or does not fit the file"
	case e.Status >= 300 && e.Status <= 399:
		text += ": a redirect, which is not followed"
	}
	return text
}

// Upload sends a file of exactly size bytes to where p allows. It asks nobody for
// a proxy, follows no redirect, and shows the host no token. A host that
// [Config].UploadHosts does not allow, or a name that leads to an address that is
// not public, is refused before a byte is sent.
//
// Uploading reaches no user, so it may always be repeated, with a Presigned of
// its own.
//
// https://sendbird.com/docs/business-messaging/guide/v2/send-a-notification
func (c *Client) Upload(ctx context.Context, p Presigned, file io.ReaderAt, size int64) error {
	target, exact, err := c.guard.allow(p.url)
	if err != nil {
		return &CallError{Call: uploadCall, Outcome: Refused, Err: err}
	}
	transport := c.guard.transport
	if exact {
		transport = c.transport // the operator's own word stands for the host
	}
	ctx, cancel := context.WithTimeout(ctx, c.uploadTimeout)
	defer cancel()
	req, err := newUpload(target, p.fields, file, size, rand.Text()+rand.Text())
	if err != nil {
		return &CallError{Call: uploadCall, Outcome: Refused, Err: err}
	}
	resp, progress, err := send(ctx, transport, req.WithContext(ctx))
	if err != nil {
		return &CallError{Call: uploadCall, Outcome: uploadOutcome(err, progress), Err: cause(err)}
	}
	defer func() { _ = resp.Body.Close() }() // the answer is known by then
	body, err := readAnswer(resp, maxUploadAnswer)
	switch {
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusCreated, resp.StatusCode == http.StatusNoContent:
		return nil // S3's default is 204; what else it says is of no interest
	case err != nil && !errors.Is(err, errTooLong):
		return &CallError{Call: uploadCall, Outcome: Unknown, Status: resp.StatusCode, Err: cause(err)}
	}
	return &UploadError{Status: resp.StatusCode, Code: xmlCode(body)}
}

const uploadCall = "upload targets file"

// uploadOutcome tells a host that may not be called from one that cannot be
// reached.
func uploadOutcome(err error, p *progress) Outcome {
	if _, blocked := errors.AsType[*blockedError](err); blocked {
		return Refused
	}
	return p.outcome()
}

// xmlCodes is letters only, so that no other text of an answer can get into an
// error.
var xmlCodes = regexp.MustCompile(`<Code>([A-Za-z]{1,64})</Code>`)

// xmlCode finds S3's word for an error: <Code>AccessDenied</Code>.
func xmlCode(body []byte) string {
	if found := xmlCodes.FindSubmatch(body); found != nil {
		return string(found[1])
	}
	return ""
}

// newUpload is the multipart call: every field first, the file last, the length
// known before.
func newUpload(target *url.URL, fields []formField, file io.ReaderAt, size int64, boundary string) (*http.Request, error) {
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	if err := w.SetBoundary(boundary); err != nil {
		return nil, errors.New("the upload cannot be built")
	}
	for _, f := range fields {
		if w.WriteField(f.name, f.value) != nil {
			return nil, errors.New("the upload cannot be built")
		}
	}
	_, err := w.CreatePart(textproto.MIMEHeader{
		"Content-Disposition": {`form-data; name="file"`},
		"Content-Type":        {"text/csv"},
	})
	head := form.Len()
	if err != nil || w.Close() != nil {
		return nil, errors.New("the upload cannot be built")
	}
	open, end := form.Bytes()[:head], form.Bytes()[head:]
	body := func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(open), io.NewSectionReader(file, 0, size), bytes.NewReader(end))), nil
	}
	first, _ := body() // never fails
	return &http.Request{
		Method: http.MethodPost, URL: target, Host: target.Host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{
			"Content-Type": {w.FormDataContentType()},
			"User-Agent":   {"birdtap"},
		},
		ContentLength: int64(form.Len()) + size,
		Body:          first,
		GetBody:       body,
	}, nil
}
