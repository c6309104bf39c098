# pykernels._C, from the sources of each folder of csrc/.

file(GLOB baseline_sources CONFIGURE_DEPENDS
  csrc/core/*.cpp csrc/gemm/*.cpp csrc/mla/*.cpp csrc/moe/*.cpp csrc/quantize/*.cpp csrc/bindings/*.cpp)
file(GLOB_RECURSE emulator_sources CONFIGURE_DEPENDS csrc/emulator/*.cpp)

set(scalar_sources ${emulator_sources})
list(FILTER scalar_sources INCLUDE REGEX "_scalar\\.cpp$")
set(avx512_sources ${emulator_sources})
list(FILTER avx512_sources INCLUDE REGEX "_avx512\\.cpp$")
set(vector_sources ${emulator_sources})
list(FILTER vector_sources EXCLUDE REGEX "_(scalar|avx512)\\.cpp$")

# In the order of the instructions that they need: of an inline function that several files emit the
# linker keeps the first, so code for the plainest processor never calls into one for a richer one.
pybind11_add_module(_C MODULE NO_EXTRAS
  ${baseline_sources} ${scalar_sources} ${vector_sources} ${avx512_sources})

target_compile_features(_C PRIVATE cxx_std_20)
target_include_directories(_C PRIVATE ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR})
set_target_properties(_C PROPERTIES
  CXX_EXTENSIONS OFF CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
target_compile_options(_C PRIVATE -O2 -Wall -Wextra -ffp-contract=off)
target_link_libraries(_C PRIVATE ${CMAKE_DL_LIBS})
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 warns inside std::string: of overlapping copies in operator+ (GCC bug 105651), of reading
  # a short string's buffer before it was written in operator=.
  target_compile_options(_C PRIVATE -Wno-restrict -Wno-maybe-uninitialized)
endif()
if(PYKERNELS_WERROR)
  target_compile_options(_C PRIVATE -Werror)
endif()

set(emulator_optimisation -O3)
if(PYKERNELS_SANITIZE)
  set(emulator_optimisation -O1)  # compiles in a third of the time
  target_compile_options(_C PRIVATE
    -O1 -g1 -fno-omit-frame-pointer -fsanitize=${PYKERNELS_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(_C PRIVATE -fsanitize=${PYKERNELS_SANITIZE})
endif()

# The emulator rounds as the GPU does, whatever the host: no contraction, and directed rounding modes
# respected where a file works with them.
set_property(SOURCE ${emulator_sources}
  APPEND PROPERTY COMPILE_OPTIONS ${emulator_optimisation} -fno-math-errno)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_property(SOURCE ${vector_sources} ${avx512_sources}
    APPEND PROPERTY COMPILE_OPTIONS -march=x86-64-v3)
  set_property(SOURCE ${avx512_sources}
    APPEND PROPERTY COMPILE_OPTIONS -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  set(rounding_sources ${emulator_sources})
  list(FILTER rounding_sources INCLUDE REGEX "_avx(2|512)\\.cpp$")
  set_property(SOURCE ${rounding_sources} APPEND PROPERTY COMPILE_OPTIONS -frounding-math)
endif()

install(TARGETS _C LIBRARY DESTINATION .)
