//! Frames of float32 numbers from the standard input through a model that Python has saved; a line of outputs for each.
//!
//!     rustc -O stream.rs -L DIR -C link-arg=-Wl,-rpath,DIR        (DIR: the folder of libfastlstm.so)
//!     ./stream model.safetensors < frames.f32
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::io::{self, Read, Write};
use std::{env, mem, process, ptr, thread};

#[repr(C)]
struct Error {
    code: c_int,
    message: [c_char; 252],
}

#[repr(C)]
struct Info {
    size: usize,
    input_size: usize,
    output_size: usize,
    // Further fields are left out: no more than `size` bytes are written.
}

#[link(name = "fastlstm")]
extern "C" {
    fn fastlstm_strerror(code: c_int) -> *const c_char;
    fn fastlstm_model_load(path: *const c_char, options: *const c_void, to: *mut *mut c_void, e: *mut Error) -> c_int;
    fn fastlstm_model_info(model: *const c_void, info: *mut Info) -> c_int;
    fn fastlstm_model_release(model: *mut c_void);
    fn fastlstm_stream_new(model: *mut c_void, to: *mut *mut c_void) -> c_int;
    fn fastlstm_stream_free(stream: *mut c_void);
    fn fastlstm_step(stream: *mut c_void, x: *const f32, y: *mut f32) -> c_int;
}

fn text(message: *const c_char) -> String {
    // SAFETY: the library's texts end with 0.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

fn checked(code: c_int) -> Result<(), String> {
    // SAFETY: strerror takes any code and never returns NULL.
    if code == 0 {
        Ok(())
    } else {
        Err(text(unsafe { fastlstm_strerror(code) }))
    }
}

/// One sequence, with its model. It may move to another thread (Send); two threads may not use it at a time (not Sync).
struct Stream {
    stream: *mut c_void,
    inputs: usize,
    outputs: usize,
}

// SAFETY: a stream may move between threads, and holds its model, which is counted atomically.
unsafe impl Send for Stream {}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream was made by stream_new and is freed once.
        unsafe { fastlstm_stream_free(self.stream) }
    }
}

impl Stream {
    fn open(path: &str) -> Result<Stream, String> {
        let path = CString::new(path).map_err(|e| e.to_string())?;
        let (mut model, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: Error and Info are of integers only; Info begins with its size. The stream retains the model.
        unsafe {
            let (mut error, mut info): (Error, Info) = (mem::zeroed(), mem::zeroed());
            if fastlstm_model_load(path.as_ptr(), ptr::null(), &mut model, &mut error) != 0 {
                return Err(text(error.message.as_ptr()));
            }
            info.size = mem::size_of::<Info>();
            fastlstm_model_info(model, &mut info);
            let code = fastlstm_stream_new(model, &mut stream);
            fastlstm_model_release(model);
            checked(code)?;
            Ok(Stream { stream, inputs: info.input_size, outputs: info.output_size })
        }
    }

    fn step(&mut self, x: &[f32], y: &mut [f32]) -> Result<(), String> {
        assert!(x.len() == self.inputs && y.len() == self.outputs);
        // SAFETY: x and y have the lengths that a step reads and writes.
        checked(unsafe { fastlstm_step(self.stream, x.as_ptr(), y.as_mut_ptr()) })
    }
}

fn listen(mut stream: Stream) -> Result<(), String> {
    let (mut frame, mut y) = (Vec::new(), vec![0.0; stream.outputs]);
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let length = 4 * stream.inputs;
    loop {
        frame.clear();
        match input.by_ref().take(length as u64).read_to_end(&mut frame).map_err(|e| e.to_string())? {
            got if got == length => {}
            0 => return Ok(()),
            _ => return Err("the last frame is cut short".to_string()),
        }
        let x: Vec<f32> = frame.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
        stream.step(&x, &mut y)?;
        let line: Vec<String> = y.iter().map(f32::to_string).collect();
        writeln!(output, "{}", line.join(" ")).map_err(|e| e.to_string())?;
    }
}

fn main() {
    let path = env::args().nth(1).ok_or("give the file of a model".to_string());
    let stream = path.and_then(|path| Stream::open(&path));
    // The stream moves to a thread that steps it; further streams would step in further threads.
    let done = stream.and_then(|stream| thread::spawn(move || listen(stream)).join().unwrap());
    if let Err(why) = done {
        eprintln!("stream: {why}");
        process::exit(1);
    }
}
