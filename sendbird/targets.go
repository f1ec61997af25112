package sendbird

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// maxFields and maxFieldBytes bound what a presigned upload may ask to be
	// sent along; the documented one has eight, of 1 KiB together.
	maxFields     = 64
	maxFieldBytes = 64 << 10
	// maxPages ends a list whose cursor never does: a million files.
	maxPages = 10_000
)

// fileKeys is what a file key may consist of. Sendbird names no rule; this passes
// through paths, JSON and S3 unchanged.
var fileKeys = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// Presigned is the permission to upload one file. It is a secret: who has it can
// upload in the account's name. Every way of printing it shows the host alone.
type Presigned struct {
	url    string
	fields []formField
	// FileKey names the file in [Notification.TargetsFile].
	FileKey string
}

// formField is one field of the upload form; they are sent in the order in which
// they came.
type formField struct{ name, value string }

// String is the host.
func (p Presigned) String() string {
	u, err := url.Parse(p.url)
	if err != nil {
		return "upload"
	}
	return "upload to " + u.Host
}

// GoString is what %#v shows.
func (p Presigned) GoString() string { return "sendbird.Presigned(" + p.String() + ")" }

// Format covers every verb.
func (p Presigned) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, p.String()) }

// MarshalText is what text formats and JSON show.
func (p Presigned) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// presignAnswer is Presigned on its way in.
type presignAnswer struct {
	URL     string     `json:"url"`
	Fields  formFields `json:"fields"`
	FileKey string     `json:"file_key"`
}

func (a *presignAnswer) complete() bool { return a.URL != "" && len(a.Fields) > 0 }

// formFields keeps the order of an object's members.
type formFields []formField

// UnmarshalJSONFrom reads an object of strings.
func (f *formFields) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	if t, err := d.ReadToken(); err != nil || t.Kind() != jsontext.KindBeginObject {
		return errNoJSON
	}
	total := 0
	for d.PeekKind() != jsontext.KindEndObject {
		var one formField
		if json.UnmarshalDecode(d, &one.name) != nil || json.UnmarshalDecode(d, &one.value) != nil {
			return errNoJSON
		}
		total += len(one.name) + len(one.value)
		// "file" is the file's own part, and a name goes into a header.
		if one.name == "" || one.name == "file" || !isLine(one.name) || len(*f) == maxFields || total > maxFieldBytes {
			return errNoJSON
		}
		*f = append(*f, one)
	}
	_, err := d.ReadToken()
	return err
}

// Presign asks for the permission to upload a file under a key of
// `[A-Za-z0-9_-]`; see [Summary]. Every upload needs one of its own. A key that
// exists is refused ([CodeExists] is likely, none is documented) unless overwrite
// is set.
//
// https://sendbird.com/docs/business-messaging/guide/v2/send-a-notification
func (c *Client) Presign(ctx context.Context, key string, overwrite bool) (Presigned, error) {
	if !fileKeys.MatchString(key) {
		return Presigned{}, &LimitError{"file_key", quoted(key), "1 to 128 letters, digits, _ or -", ""}
	}
	body := fmt.Appendf(nil, `{"overwrite_duplicate_key":%t}`, overwrite)
	var a presignAnswer
	if err := c.call(ctx, endpointPresign, "/v1/storage/targets_files/"+url.PathEscape(key)+"/presigned_urls", body, &a); err != nil {
		return Presigned{}, err
	}
	if a.FileKey == "" {
		a.FileKey = key
	}
	return Presigned{url: a.URL, fields: a.Fields, FileKey: a.FileKey}, nil
}

// File is an uploaded file of targets.
type File struct {
	Key        string `json:"file_key"`
	Size       int64  `json:"file_size"` // bytes
	ExpiresAt  Time   `json:"expires_at"`
	UploadedAt Time   `json:"uploaded_at"`
}

// Expired tells whether the file is gone at now; files stay for 30 days.
func (f File) Expired(now time.Time) bool {
	return !f.ExpiresAt.IsZero() && now.After(f.ExpiresAt.Time)
}

// FilePage is one page of a list of files.
type FilePage struct {
	Files []File `json:"files"`
	// Next is the token of the next page, "" if this is the last.
	Next string `json:"next"`
}

func (p *FilePage) complete() bool { return p.Files != nil }

// MaxFilesPerPage is the largest page, and the default;
// https://sendbird.com/docs/business-messaging/guide/v2/send-a-notification.
const MaxFilesPerPage = 100

// ListFiles lists one page of uploaded files. token is the Next of the page
// before, "" for the first; limit is 1 to 100, 0 for the default of 100.
//
// https://sendbird.com/docs/business-messaging/guide/v2/send-a-notification
func (c *Client) ListFiles(ctx context.Context, token string, limit int) (FilePage, error) {
	if limit < 0 || limit > MaxFilesPerPage {
		return FilePage{}, &LimitError{"limit", strconv.Itoa(limit), "1 to 100", pageSend}
	}
	query := url.Values{}
	if token != "" {
		query.Set("token", token)
	}
	if limit > 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	path := "/v1/storage/targets_files"
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var page FilePage
	err := c.call(ctx, endpointFiles, path, nil, &page)
	return page, err
}

// Files is every uploaded file, page after page. An error ends it.
func (c *Client) Files(ctx context.Context) iter.Seq2[File, error] {
	return func(yield func(File, error) bool) {
		next := ""
		for range maxPages {
			page, err := c.ListFiles(ctx, next, 0)
			if err != nil {
				yield(File{}, err)
				return
			}
			for _, f := range page.Files {
				if !yield(f, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			if page.Next == next {
				break
			}
			next = page.Next
		}
		yield(File{}, &CallError{Call: endpointFiles.String(), Err: errEndless})
	}
}

var errEndless = errors.New("the list has no end: its cursor leads to where it was")
