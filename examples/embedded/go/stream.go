// Frames of many sequences from the standard input through a model that Python has saved. One call of C steps all of them,
// so that they share what a call from Go to C costs.
//
//	export CGO_CFLAGS="$(fastlstm info --cflags)" CGO_LDFLAGS="$(fastlstm info --libs)"
//	go build && ./stream model.safetensors 4 < frames.f32
//
// The input has a frame of the first sequence, one of the second, ..., then the next frame of the first. Each gives a line.
package main

/*
#include <stdlib.h>
#include <fastlstm.h>

static fastlstm_info info_of(const fastlstm_model *model) {
    fastlstm_info info = FASTLSTM_INFO_INIT;
    fastlstm_model_info(model, &info);
    return info;
}
*/
import "C"

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unsafe"
)

// Batch is many sequences of one model. One goroutine at a time may use it.
type Batch struct {
	batch           *C.fastlstm_batch
	Inputs, Outputs int
}

func failure(code C.int) error {
	if code == C.FASTLSTM_OK {
		return nil
	}
	return errors.New(C.GoString(C.fastlstm_strerror(code)))
}

// Open loads a model and makes room for sequences. Close frees what it returns.
func Open(path string, capacity int) (*Batch, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	var model *C.fastlstm_model
	var said C.fastlstm_error
	if C.fastlstm_model_load(name, nil, &model, &said) != C.FASTLSTM_OK {
		return nil, errors.New(C.GoString(&said.message[0]))
	}
	defer C.fastlstm_model_release(model) // the batch retains it
	info := C.info_of(model)
	made := &Batch{Inputs: int(info.input_size), Outputs: int(info.output_size)}
	return made, failure(C.fastlstm_batch_new(model, C.size_t(capacity), 0, &made.batch))
}

// Close frees the batch.
func (b *Batch) Close() { C.fastlstm_batch_free(b.batch) }

// Start begins a sequence.
func (b *Batch) Start() (handle C.fastlstm_handle, err error) {
	err = failure(C.fastlstm_batch_open(b.batch, &handle))
	return handle, err
}

// Step takes a frame of every sequence: x has len(handles) * Inputs numbers, y len(handles) * Outputs.
func (b *Batch) Step(handles []C.fastlstm_handle, x, y []float32) error {
	if len(x) == 0 || len(x) != len(handles)*b.Inputs || len(y) != len(handles)*b.Outputs {
		return fmt.Errorf("%d sequences do not fit %d and %d numbers", len(handles), len(x), len(y))
	}
	return failure(C.fastlstm_batch_step(b.batch, &handles[0], C.size_t(len(handles)),
		(*C.float)(unsafe.Pointer(&x[0])), (*C.float)(unsafe.Pointer(&y[0]))))
}

func listen(path string, sequences int) error {
	batch, err := Open(path, sequences)
	if err != nil {
		return err
	}
	defer batch.Close()
	handles := make([]C.fastlstm_handle, sequences)
	for i := range handles {
		if handles[i], err = batch.Start(); err != nil {
			return err
		}
	}
	x, y := make([]float32, sequences*batch.Inputs), make([]float32, sequences*batch.Outputs)
	input, output := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	defer output.Flush()
	for {
		if err := binary.Read(input, binary.LittleEndian, x); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("the last frames are cut short: %w", err)
		}
		if err := batch.Step(handles, x, y); err != nil {
			return err
		}
		for i := range handles {
			row := fmt.Sprint(y[i*batch.Outputs : (i+1)*batch.Outputs])
			fmt.Fprintln(output, strings.Trim(row, "[]"))
		}
	}
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "give the file of a model and the number of sequences")
		os.Exit(1)
	}
	sequences, err := strconv.Atoi(os.Args[2])
	if err == nil && sequences < 1 {
		err = errors.New("one sequence at least is wanted")
	}
	if err == nil {
		err = listen(os.Args[1], sequences)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
