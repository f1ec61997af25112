package main

import (
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newLogger writes lines of the level and above to w: JSON for machines, or
// console for a person at a terminal. Every room names its own with .Named.
//
// A log line holds no payload, no personal data and no secret.
func newLogger(w io.Writer, level, format string) *zap.Logger {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil {
		parsed = zapcore.InfoLevel // Validate lets no other level through
	}
	return zap.New(
		zapcore.NewCore(newEncoder(format), zapcore.Lock(zapcore.AddSync(w)), parsed),
		zap.ErrorOutput(zapcore.Lock(zapcore.AddSync(w))),
	)
}

func newEncoder(format string) zapcore.Encoder {
	c := zap.NewProductionEncoderConfig()
	c.EncodeDuration = zapcore.StringDurationEncoder
	if format == "console" {
		c.EncodeTime = zapcore.TimeEncoderOfLayout(time.TimeOnly)
		c.EncodeLevel = zapcore.CapitalLevelEncoder
		return zapcore.NewConsoleEncoder(c)
	}
	c.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	return zapcore.NewJSONEncoder(c)
}
